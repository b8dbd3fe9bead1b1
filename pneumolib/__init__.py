"""pneumolib: pneumonia or normal, on children's chest radiographs. Research only, not a medical device.

The rooms, in the order of the data's way: `data`, `learning`, `evaluation`, `audit`, `reporting`, `study`, `serve`, `remote`.
A room imports only from those before it and from the top modules `errors`, `hosts`, `params`, `project`, `provenance`. Rooms
load when first used, so that the command line and the up-to-date check never import TensorFlow.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["params", "data", "learning", "evaluation", "audit", "reporting", "serve", "remote"],
    submod_attrs={"reporting.session": ["start"]},
)
