"""What a network is told of its target's median while it trains: exactly what it will be told in use.

The predictor is one function, fitted once on all training subjects and stored with the weights, and a training subject
gets what that function says of its present sequences. Leaving each subject out of its own prediction looks cleaner and
is not: what is then predicted moves against the subject's own median, and a network could read it off.
"""

from __future__ import annotations
