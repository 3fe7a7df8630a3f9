"""The words that tables are written in: what a tensor does, and what an axis counts.

Methods dispatch on roles, and two axes of a block with one label have one size. Words are literals,
so that mypy refuses a misspelt one, in a table and wherever one is asked for. A new word is a line
here, with its meaning; the words of the common parts come first.
"""

from typing import Literal

Role = Literal[
    # attention
    "attention_norm",  # norms the stream before the token mixer
    "query",  # computes queries
    "key",  # computes keys
    "value",  # computes values
    "attention_output",  # writes what heads hand on into the stream
    "attention_output_bias",  # is added to that, where its weights are experts'
    "attention_output_norm",  # norms what attention hands over before it is added
    "attention_output_conv",  # convolves what attention hands over before it is added
    "query_norm",  # norms queries
    "key_norm",  # norms keys
    "sinks",  # one logit per head that takes attention away from all tokens
    "attention_gate",  # gates what heads hand on
    "attended_norm",  # norms what heads hand on
    "buffer",  # no parameter: loaders compute it anew or ignore it
    "scale",  # no parameter: what a quantised weight's values are multiplied with
    # FFN
    "ffn_norm",  # norms the stream before the FFN
    "gate",  # computes what the activation function sees
    "up",  # computes what the gate multiplies; without a gate, what the activation function sees
    "ffn_output",  # writes what the neurons hand on into the stream
    "ffn_output_bias",  # is added to that, where its weights are experts'
    "ffn_output_norm",  # norms what the FFN hands over before it is added
    "ffn_output_conv",  # convolves what the FFN hands over before it is added
    "ffn_inner_norm",  # norms what the neurons hand on
    "ffn_scale",  # scales what the FFN hands over
    "positive_slope",  # slope of an activation function above zero
    "negative_slope",  # slope of an activation function below zero
    # what happens to the stream itself
    "embedding_norm",  # norms the embeddings, in the first block
    "residual_scale",  # scales the stream after the block
    "attention_scale",  # scales what attention adds
    "attention_shift",  # shifts what attention adds
    "attention_residual_scale",  # scales the stream that attention adds to
    "attention_residual_shift",  # shifts the stream that attention adds to
    "ffn_shift",  # shifts what the FFN adds
    "ffn_residual_scale",  # scales the stream that the FFN adds to
    "ffn_residual_shift",  # shifts the stream that the FFN adds to
    "attention_norm_gate_down",  # from a normed stream to the rank of the norm's gate: attention
    "attention_norm_gate_up",  # from that rank to a gate on the normed stream: attention
    "ffn_norm_gate_down",  # from a normed stream to the rank of the norm's gate: FFN
    "ffn_norm_gate_up",  # from that rank to a gate on the normed stream: FFN
    # experts
    "router",  # scores experts
    "router_correction",  # is added to the scores for the choice alone
    "router_scale",  # scales what the router sees
    "router_down",  # computes the router's own hidden state
    "router_stream_scale",  # scales the hidden state that the router of the block below hands on
    "router_norm",  # norms the router's hidden state
    "router_hidden",  # first layer of a router's MLP
    "router_hidden_2",  # second layer of a router's MLP
    "router_skip",  # scores having no expert
    "router_skip_correction",  # is added to that score for the choice alone
    "expert_scale",  # scales what each expert hands over
    "expert_ffn_norm",  # norms what experts see
    "expert_output_norm",  # norms what experts hand over
    "shared_ffn_norm",  # norms what the FFN beside the experts hands over
    "shared_gate",  # gates what shared experts hand over; or their gates, all in one tensor
    "shared_router",  # weighs shared experts
    "shared_up",  # up projections of all shared experts in one tensor
    "shared_output",  # output projections of all shared experts in one tensor
    "latent_down",  # from the stream to the narrower space that experts live in
    "latent_up",  # from that space back into the stream
    "expert_gates",  # gates of all experts in one matrix
    "expert_ups",  # up projections of all experts in one matrix
    "expert_outputs",  # output projections of all experts in one matrix
    "attention_router",  # scores experts of attention
    "expert_queries",  # query projections of all experts of attention
    "expert_attention_outputs",  # output projections of all experts of attention
    "retrieval_router",  # looks experts of one neuron up by the product of two keys
    "retrieved_input",  # what experts of one neuron read
    "retrieved_output",  # what experts of one neuron write
    # latent attention and indexers
    "latent_query_down",  # from the stream to the latent vector of queries
    "latent_query_norm",  # norms that vector
    "latent_query_up",  # from that vector to queries
    "latent_key_value_down",  # from the stream to the latent vector of keys and values
    "latent_key_value_norm",  # norms that vector
    "latent_key_value_up",  # from that vector to keys and values
    "rope_key_norm",  # norms the one key of RoPE dimensions that all heads share
    "indexer_query",  # queries of the indexer, which chooses the keys to attend to
    "indexer_query_norm",  # norms them
    "indexer_key",  # its keys
    "indexer_key_norm",  # norms them
    "indexer_weight",  # weighs its heads
    # other kinds of attention
    "value_step",  # computes from values how much a token is attended to
    "value_decay",  # how strongly, per head
    "mixed_query",  # queries before they are convolved
    "mixed_key",  # keys before they are convolved
    "current_value",  # half of the values, from this token
    "delayed_value",  # half of the values, from the token before
    "query_key_conv",  # convolves queries and keys channel by channel
    "query_key_mix",  # convolves queries and keys head by head
    "query_key_mix_bias",  # its bias
    "key_temperature",  # scales the keys of each head
    "key_conv",  # convolves keys
    "value_conv",  # convolves values
    "relative",  # computes what heads see of distances
    "relative_logits",  # from that to logits of distances
    # mixers that are no attention
    "mixer_norm",  # norms the stream before the mixer, in blocks without attention
    "mixer_input",  # computes what the mixer mixes, with or without its gates
    "mixer_gate",  # computes a gate on what it hands on
    "mixer_conv",  # convolves what it mixes
    "mixer_parameters",  # computes step, input and output of the state
    "mixer_step",  # the state's step size: its projection, or its bias
    "mixer_decay",  # how fast the state decays
    "mixer_skip",  # how much of the input goes past the state
    "mixer_first",  # how much the present token counts
    "mixer_inner_norm",  # norms what the mixer hands on
    "mixer_step_norm",  # norms the steps
    "mixer_in_norm",  # norms what goes into the state
    "mixer_out_norm",  # norms what comes out of the state
    "mixer_output",  # writes what the mixer hands on into the stream
    "mixer_query",  # its queries
    "mixer_key",  # its keys
    "mixer_value",  # its values
    "mixer_query_conv",  # convolves them
    "mixer_key_conv",  # convolves them
    "mixer_value_conv",  # convolves them
    "mixer_rate",  # how strongly a token is written into the state
    "mixer_rates",  # that and how fast the state is forgotten, in one
    "mixer_forget",  # how fast the state is forgotten
    "mixer_forget_down",  # the same by way of a few dimensions: down
    "mixer_forget_up",  # and up
    "mixer_gate_down",  # a gate by way of a few dimensions: down
    "mixer_gate_up",  # and up
    "mixer_input_gate_weight",  # gate on what goes into a recurrence, head by head
    "mixer_input_gate_bias",  # its bias
    "mixer_recurrent_gate_weight",  # gate on the recurrence itself, head by head
    "mixer_recurrent_gate_bias",  # its bias
    "mixer_receptance",  # computes RWKV's gate on what is handed on
    "mixer_key_mix",  # how far keys see the token before
    "mixer_value_mix",  # how far values see the token before
    "mixer_receptance_mix",  # how far receptance sees the token before
    "ffn_key_mix",  # how far the FFN sees the token before
    "ffn_receptance",  # computes RWKV's gate on what the FFN hands over
    "ffn_receptance_mix",  # how far that gate sees the token before
]
"""What a tensor does. A weight and its bias share a role."""

Axis = Literal[
    "one",  # a single entry
    # attention
    "residual",  # the stream that all blocks share
    "query",  # query heads × a head's dimensions
    "key_value",  # KV heads × a head's dimensions
    "value",  # KV heads × a value head's dimensions
    "attended",  # query heads × a value head's dimensions: what heads hand on
    "head",  # a query or key head's dimensions
    "heads",  # query heads
    "kv_heads",  # KV heads
    "attention_gate",  # gates on what heads hand on, where blocks differ in their number
    # FFN and experts
    "ffn",  # neurons of the FFN
    "expert",  # experts
    "expert_groups",  # groups of experts: a size alone, no tensor has this axis
    "expert_ffn",  # neurons of one expert
    "expert_rows",  # experts × neurons of one
    "shared_ffn",  # neurons of the FFN that all tokens pass beside experts
    "shared_expert",  # experts that all tokens pass
    "latent",  # a narrower space that experts live in
    "router",  # dimensions of a router's hidden state
    "attention_expert",  # experts of attention
    "retrieval_key",  # keys that experts of one neuron are looked up by
    "retrieved",  # experts of one neuron
    # latent attention and indexers
    "latent_query",  # latent vector of queries
    "latent_query_pair",  # that vector twice: normed and as it was
    "latent_key_value",  # latent vector of keys and values
    "latent_and_rotary",  # that vector and the one rotary key
    "query_and_gate",  # queries and a gate on what heads hand on
    "rope",  # dimensions of the one rotary key
    "indexer_query",  # an indexer's heads × its dimensions
    "group_indexer_query",  # the same where each head chooses keys for one KV group
    "indexer_dimension",  # dimensions of an indexer's head
    "indexer_head",  # an indexer's heads
    "norm_gate",  # rank of the gate on a norm
    # other kinds of attention
    "half_value",  # half of the values
    "query_key",  # queries and keys
    "mix_width",  # tokens that a mixture of queries and keys sees
    "relative_heads",  # query heads × the rank of distances
    "relative_rank",  # rank of distances
    "relative_extent",  # distances
    "key_channels",  # channels of a convolution of keys
    "value_channels",  # channels of a convolution of values
    # mixers that are no attention
    "mixer",  # what a mixer hands on
    "mixer_key",  # a mixer's queries or keys
    "mixer_input",  # all that a mixer's projection in makes
    "mixer_channel",  # channels of its convolution
    "mixer_head",  # its heads
    "mixer_head_dim",  # dimensions of a head
    "mixer_head_in",  # dimensions of a head that a gate reads
    "mixer_head_out",  # dimensions of a head that a gate makes
    "mixer_value_head",  # dimensions of a value head
    "mixer_parameters",  # step, input and output of the state together
    "mixer_rates",  # rates of writing and of forgetting together
    "mixer_rank",  # rank of a projection by way of a few dimensions
    "mixer_step",  # rank of the state's step
    "state",  # dimensions of a channel's state
    "width",  # tokens that a convolution sees
    "query_conv",  # channels of the stored convolution of queries
    "key_conv",  # channels of the stored convolution of keys
    "value_conv",  # channels of the stored convolution of values
]
"""What an axis counts. Equal labels mean equal sizes, unless a family lets blocks differ."""
