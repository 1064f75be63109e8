"""The network that is tuned: which layers are read, what of it is trained, and what is computed only once."""

from featpipe.tuning.network._body import Body
from featpipe.tuning.network._frozen import freeze
from featpipe.tuning.network._slide import slide_classifier

__all__ = ["Body", "freeze", "slide_classifier"]
