"""OPT: an omni-perception pre-trainer for images, Chinese text and speech.

MindSpore reads two settings from the environment when it is imported, so they are given their defaults here, before
any module of the project can import it.
"""

import os

os.environ.setdefault("GLOG_v", "3")  # errors only: a user cannot act on the warnings of the graph compiler
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning worker threads starve fused kernels and the data thread
