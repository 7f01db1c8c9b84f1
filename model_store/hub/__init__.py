"""A folder as model hubs have them: a configuration and weights in, the keys of a definition out.

`timm`, `transformers` and `openmmlab` read the configurations, `weights` finds the weights, `folder` joins both.
"""
