"""The network that is tuned: which layers are read, what of it is trained, and what is computed only once."""

from featpipe.tuning.network._body import Body
from featpipe.tuning.network._frozen import freeze
from featpipe.tuning.network._slide import slide_classifier
from featpipe.tuning.network._taps import label_of, taps_of

__all__ = ["Body", "freeze", "label_of", "slide_classifier", "taps_of"]
