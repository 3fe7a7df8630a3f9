"""LLaMA PRO, block expansion. arXiv 2401.02415, section 3.2.

The base's L blocks form m groups; after each group stands a copy of its last block with the two
output projections zeroed, so that the grown model computes what the base computes. Where m does not
divide L the groups differ by one block. Any other placement works too, copies of the block below.
"""

from deepen.methods.method import Method, above_copied, copied
from deepen.methods.options import FusedOptions

METHOD = Method(
    name="llama-pro",
    summary="copy of the block below, output projections zeroed",
    reference="arXiv:2401.02415",
    place=above_copied("uniform"),
    fuse=copied,
    copies=True,
    options=FusedOptions,
)
