"""What children of the fork server need, imported once."""

import matplotlib.pyplot  # noqa: F401
import sklearn.ensemble
import sklearn.linear_model  # noqa: F401
import torch
import torch._dynamo

import astroco_fast.embedding
import astroco_fast.periods
import astroco_fast.pretrain.run
import astroco_fast.probe.run
import astroco_fast.reproduce.run  # noqa: F401
from astroco_fast import plots  # noqa: F401

torch.set_num_threads(1)
