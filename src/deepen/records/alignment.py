"""How well blocks align."""

from pydantic import ConfigDict, computed_field

from deepen.records.record import Record


class PartAlignment(Record):
    """How well one kind of part of two blocks was matched one to one."""

    # Its JSON holds the costs, which are computed, and must read back.
    model_config = ConfigDict(extra="ignore")

    part: str
    """``heads``, ``neurons``, ``expert neurons`` (means over experts) or ``shared neurons``."""
    units: int
    """How many were matched."""
    similarity_before: float
    """Mean similarity of those of the same index, -1 to 1: what a plain mean averages."""
    similarity_after: float
    """Mean similarity of matched ones."""
    similarity_by_chance: float
    """The same for two unrelated blocks of these norms."""
    in_place: float
    """Share that was matched to the same index."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cost_before(self) -> float:
        """Mean transport cost, 1 - similarity, of leaving everything where it is."""
        return 1 - self.similarity_before

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cost_after(self) -> float:
        """Mean transport cost of the match."""
        return 1 - self.similarity_after


class BlockAlignment(Record):
    """How well two blocks align, and the new block between them, if there is one."""

    below: int
    """The lower block, as an index of the model."""
    above: int
    """The upper block."""
    block: int | None
    """The new block that was made from them; ``None`` for a gap."""
    parts: list[PartAlignment]
    """Part by part."""
    effective_matches: float | None
    """Neurons that one neuron is spread over by the entropic plan, exp of its mean row entropy;
    ``None`` without an FFN."""
    diagonal_mass: float | None
    """Share of that plan's mass that stays at its own index; ``None`` without an FFN."""
    cka: float | None
    """Linear CKA of what the two blocks add to the residual stream on the calibration text."""
    function_change: float | None = None
    """Relative change of what the lower block computes when it is aligned, run in float32 on a few
    tokens; rounding alone stays far below 1e-3. ``None`` in records from before it was measured."""
    norm_ratios: dict[str, float]
    """Role → median row norm of the new block's weight as a share of the upper block's."""
    heat_map: list[list[float]]
    """The entropic plan of the neurons, sorted and shrunk, in units of the uniform plan's mass."""


class AlignmentRecord(Record):
    """How well a model's neighbouring blocks align."""

    model: str
    """Hub id, or the folder's name."""
    method: str | None
    """The method that made the new blocks; ``None`` if there are none."""
    calibration: str | None
    """Name of the calibration text."""
    regularisation: float
    """Entropic regularisation of the plans that are shown, in units of the cost's spread."""
    blocks: list[BlockAlignment]
    """One entry per new block, or per gap of a model that was not grown."""
