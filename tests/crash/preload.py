"""What children of the fork server need, imported once."""

import torch
import torch._dynamo

import astroco_fast.embedding
import astroco_fast.periods
import astroco_fast.pretrain.loop
import astroco_fast.probe.run  # noqa: F401

torch.set_num_threads(1)
