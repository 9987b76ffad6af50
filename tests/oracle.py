"""torch, on one thread; where it is missing, the module that imports this is skipped.

With more, its threads wait for each other busily: of products as small as these the
tests' two processes on two cores made hundreds of milliseconds.
"""

import pytest

torch = pytest.importorskip("torch", reason="torch is the oracle of this module")
torch.set_num_threads(1)
