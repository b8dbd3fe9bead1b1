"""pneumolib: pneumonia or normal, on children's chest radiographs. Research only, not a medical device.

Eight rooms and a door, in the order of the data's way; a room imports only from those above it:
`params` (the door), `data`, `learning`, `evaluation`, `audit`, `reporting`, `serve`, `remote`. Rooms load when first used, so that the command
line and the up-to-date check never import TensorFlow.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["params", "data", "learning", "evaluation", "audit", "reporting", "serve", "remote"],
    submod_attrs={"reporting.session": ["start"]},
)
