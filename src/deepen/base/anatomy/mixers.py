"""What tables of hybrids are put together from: token mixers that are no attention.

Mamba, gated delta networks and short convolutions have projections in and out, a depthwise
convolution ``[channels, 1, width]``, and small tensors that say how a state decays. None of them
is an attention's query, key or value, so their roles are their own; the projection out is silent.
"""

from collections.abc import Mapping, Sequence

from deepen.base.anatomy.family import Config
from deepen.base.anatomy.parts import fused, linear, norm, other
from deepen.base.anatomy.tensors import Kinds, StoredSpec, Table, TensorSpec
from deepen.base.anatomy.vocabulary import Axis, Role


def product(*choices: Kinds) -> dict[str, Table]:
    """Compose all kinds of block that take one of each choice, parts in the order of the choices.

    Kinds are named after the choices' names, empty ones left out.
    """
    kinds: dict[str, Table] = {"": {}}
    for choice in choices:
        kinds = {
            ", ".join(filter(None, (kind, name))): {**table, **more}
            for kind, table in kinds.items()
            for name, more in choice.items()
        }
    return kinds


def first_differs(config: Config) -> list[object]:
    """Say that the first block has not the tensors of the others: a ``Family.pattern``."""
    return [index == 0 for index in range(config["num_hidden_layers"])]


def conv(name: str, role: Role, axis: Axis) -> Table:
    """Describe a depthwise convolution ``[channels, 1, width]`` and its bias, if it has one."""
    weight, bias = TensorSpec(role, (axis, "one", "width")), TensorSpec(role, (axis,), bias=True)
    return {
        f"{name}.weight": StoredSpec((weight,)),
        f"{name}.bias": StoredSpec((bias,), optional=True),
    }


def convs(name: str, axes: Sequence[Axis] = ("mixer", "mixer", "mixer")) -> tuple[Table, Table]:
    """Describe the convolutions of queries, keys and values of a linear attention.

    Args:
        name: Name of the mixer inside the block.
        axes: Labels of their channels.

    Returns:
        Three convolutions, as checkpoints hold them; one for all, as transformers does.
    """
    roles: tuple[Role, ...] = ("mixer_query_conv", "mixer_key_conv", "mixer_value_conv")
    parts = tuple(
        TensorSpec(role, (axis, "one", "width")) for role, axis in zip(roles, axes, strict=True)
    )
    stored = {
        **conv(f"{name}.q_conv1d", roles[0], axes[0]),
        **conv(f"{name}.k_conv1d", roles[1], axes[1]),
        **conv(f"{name}.v_conv1d", roles[2], axes[2]),
    }
    return stored, {f"{name}.conv1d.weight": StoredSpec(parts, "rows")}


def mamba(name: str) -> Table:
    """Describe a Mamba mixer. arXiv 2312.00752, section 3.4."""
    return {
        **other(f"{name}.A_log", "mixer_decay", ("mixer", "state")),
        **other(f"{name}.D", "mixer_skip", ("mixer",)),
        **fused(f"{name}.in_proj", {"mixer_input": "mixer", "mixer_gate": "mixer"}),
        **conv(f"{name}.conv1d", "mixer_conv", "mixer"),
        **linear(f"{name}.x_proj", "mixer_parameters", "mixer_parameters", "mixer"),
        **linear(f"{name}.dt_proj", "mixer_step", "mixer", "mixer_step"),
        **linear(f"{name}.out_proj", "mixer_output", "residual", "mixer"),
    }


def mamba2(name: str, *, normed: bool = True) -> Table:
    """Describe a Mamba-2 mixer. arXiv 2405.21060, section 7.

    Args:
        name: Name of the mixer inside the block.
        normed: Whether what it computes is normed before the projection out.
    """
    return {
        **_decay(name),
        **other(f"{name}.D", "mixer_skip", ("mixer_head",)),
        **linear(f"{name}.in_proj", "mixer_input", "mixer_input", "residual"),
        **conv(f"{name}.conv1d", "mixer_conv", "mixer_channel"),
        **(norm(f"{name}.norm", "mixer_inner_norm", "mixer") if normed else {}),
        **linear(f"{name}.out_proj", "mixer_output", "residual", "mixer"),
    }


def delta(inputs: Mapping[str, tuple[Role, Axis]], name: str = "linear_attn") -> Table:
    """Describe a gated delta network. arXiv 2412.06464, section 3.

    Args:
        inputs: Name of each projection in → role, label of its rows.
        name: Name of the mixer inside the block.
    """
    table: Table = _decay(name)
    for projection, (role, axis) in inputs.items():
        table = {**table, **linear(f"{name}.{projection}", role, axis, "residual")}
    return {
        **table,
        **conv(f"{name}.conv1d", "mixer_conv", "mixer_channel"),
        **norm(f"{name}.norm", "mixer_inner_norm", "mixer_value_head"),
        **linear(f"{name}.out_proj", "mixer_output", "residual", "mixer"),
    }


def short_conv(name: str = "conv", *, writes: bool = True) -> Table:
    """Describe LFM's gated short convolution."""
    return {
        **linear(f"{name}.in_proj", "mixer_input", "mixer_input", "residual"),
        **conv(f"{name}.conv", "mixer_conv", "mixer"),
        **linear(f"{name}.out_proj", "mixer_output", "residual", "mixer", writes=writes),
    }


def linear_attention(name: str, gate: Table) -> tuple[Table, Table]:
    """Describe Kimi delta attention. arXiv 2510.26692, section 3.

    Args:
        name: Name of the mixer inside the block, without the name of its output projection.
        gate: What computes its decay and its output's gate.

    Returns:
        As checkpoints hold it, and as transformers does.
    """
    stored, memory = convs(name)
    projections: Table = {
        **linear(f"{name}.q_proj", "mixer_query", "mixer", "residual"),
        **linear(f"{name}.k_proj", "mixer_key", "mixer", "residual"),
        **linear(f"{name}.v_proj", "mixer_value", "mixer", "residual"),
    }
    rest: Table = {
        **gate,
        **linear(f"{name}.b_proj", "mixer_rate", "mixer_head", "residual"),
        **norm(f"{name}.o_norm", "mixer_inner_norm", "mixer_head_dim"),
    }
    return {**projections, **stored, **rest}, {**projections, **memory, **rest}


def _decay(name: str) -> Table:
    """Describe how fast each head's state decays, and the bias of its step."""
    return {
        **other(f"{name}.dt_bias", "mixer_step", ("mixer_head",)),
        **other(f"{name}.A_log", "mixer_decay", ("mixer_head",)),
    }
