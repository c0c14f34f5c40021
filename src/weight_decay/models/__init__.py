"""The networks of the study: pre-activation ResNets and VGG for vision, GPT-2 for language.

Every model is a plain `torch.nn.Module` with a method `initialise(generator)` that sets all of its weights
and buffers from that generator alone. Three ways to build one, from simple to lean:

- `model = PreActResNet(...)`, then `model.initialise(generator)`;
- the same inside `with torch.device("meta"):` when only names, shapes or counts are wanted;
- on the meta device, then `model.to_empty(device=...)`, then `model.initialise(generator)`: nothing is drawn
  twice and torch's global random state is never touched.
"""
