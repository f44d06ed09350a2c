"""Where the output of every filter goes: the network is run on tensors without data, with a label on each element.

An element labelled with a filter is exactly zero whenever that filter is dropped. Operations that move elements are
carried out on the labels themselves (`moves`); each other one has a rule that says when zero in gives zero out
(`rules`). `follow` is the entry point; what it finds is a `Trace`.
"""
