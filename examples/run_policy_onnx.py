"""
A trained policy without this library
=====================================

Runs a policy with onnxruntime and numpy alone, from a file written by ``python -m wgflow_rl.export runs/<run>``:
``python examples/run_policy_onnx.py policy.onnx``.

Prints the chunk of actions for one observation. The metadata of the file list its inputs; noise is one of them.
"""

import json
import sys

import numpy as np
import onnxruntime

policy = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(policy.get_modelmeta().custom_metadata_map["wgflow"])
_, *obs_shape = about["inputs"][0]["shape"]
rng = np.random.default_rng(0)
draw = {"normal": rng.standard_normal, "uniform": rng.random}


def act(obs):
    """Observations [B, S] in the environment's units -> the chunks to execute, [B, h, A] in [-1, 1]."""
    given = {"obs": obs}
    for part in about["inputs"][1:]:
        given[part["name"]] = draw[part["is"]]((len(obs), *part["shape"][1:]))
    return policy.run(None, {name: np.float32(value) for name, value in given.items()})[0]


obs = np.zeros((1, *obs_shape))  # replace by the observation of your environment
print(f"{about['method']} for {about['env']}, step {about['step']}; one chunk [steps, action]:")
print(np.round(act(obs)[0], 3))
