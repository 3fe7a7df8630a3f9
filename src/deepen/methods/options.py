"""Options of methods, and what those of all methods that make weights share."""

from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from deepen.base.anatomy import TensorSpec
    from deepen.records.growth import Trains


LARGEST = 1e6
"""Largest factor on weights: far beyond any that learns, and far from float32's overflow."""


class Options(BaseModel):
    """A method's own options; each field's docstring is its help text. Numbers are finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    def silences(self, spec: "TensorSpec") -> bool:
        """Whether a tensor of a new block gets its silent value, whatever the method would make."""
        return False

    @property
    def computing(self) -> list[str]:
        """The options that would compute new values for tensors which a method copies."""
        return []

    @property
    def trained(self) -> "Trains | None":
        """What trains after growing, where options say so; by default what the paper trains."""
        return None

    @property
    def preserves_function(self) -> bool:
        """Whether the grown model computes what the base computes, until it is trained."""
        return False


class FusedOptions(Options):
    """Options of every method that makes new weights; each may have its own defaults.

    The house applies ``output_scale``, ``output_noise`` and ``feature_scale`` to what a method
    makes.
    """

    output_scale: float = Field(default=0.0, ge=0, le=LARGEST)
    """What is kept of the output projections: `0` keeps the base's function, `1` all of them."""
    restore_norms: bool = False
    """Whether fused rows get the parents' mean norm back, which averaging unlike rows shrinks."""
    feature_scale: float = Field(default=1.0, gt=0, le=LARGEST)
    """Factor on value and up projections, and so on what the output projections learn from."""
    output_noise: float = Field(default=0.0, ge=0, le=LARGEST)
    """Size of random values that silent output projections start at instead of zero, relative to
    the parent's, for quantisers that divide by the largest value of a group; `0.001` is plenty."""

    @model_validator(mode="after")
    def _check_noise(self) -> Self:
        """Refuse noise where outputs are not silent."""
        if self.output_noise and self.output_scale:
            raise ValueError("output_noise belongs to output_scale=0")
        return self

    def silences(self, spec: "TensorSpec") -> bool:
        """Whether a tensor of a new block gets its silent value, whatever the method would make."""
        return self.output_scale == 0 and spec.silent is not None

    @property
    def computing(self) -> list[str]:
        """The options that would compute new values for tensors which a method copies."""
        wanted = {
            "output_scale": self.output_scale not in (0, 1),
            "output_noise": self.output_noise != 0,
            "feature_scale": self.feature_scale != 1,
        }
        return [name for name, computes in wanted.items() if computes]

    @property
    def preserves_function(self) -> bool:
        """Whether the grown model computes what the base computes, until it is trained."""
        return self.output_scale == 0 and self.output_noise == 0


class BlendedOptions(FusedOptions):
    """Options of the methods that take a mean of the two parents."""

    upper_share: float = Field(default=0.5, ge=0, le=1)
    """Weight of the upper block in the mean, where a gap takes one new block: `0` is the lower
    block, `1` the upper one; with several in a gap each is shifted by the same odds."""
    match_norms: bool = False
    """Whether rows of the lower block first get the norms of the upper block's rows that they are
    averaged with, so that both count alike."""

    def weight(self, t: float) -> float:
        """Return the upper block's weight in a new block at ``t`` of the way through its gap."""
        upper, lower = self.upper_share * t, (1 - self.upper_share) * (1 - t)
        return upper / (upper + lower)
