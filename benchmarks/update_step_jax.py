"""The update of `wgflow_rl.agents.dfp` in JAX, jitted: the peer of benchmarks/update_step.py, which starts it.

    python -m pip install "jax[cpu]"               # in an environment of its own: the project needs no JAX
    python benchmarks/update_step_jax.py FILE.npz  # written by update_step.py; then one number of steps a line on stdin

Answers each line with the processor seconds of these steps and the losses of the last. The same algebra as ours, in
float32 throughout: first layers split, so that a state is multiplied once; exact GELU; one backward pass.
"""

import json
import os
import sys
import time

# One thread, before XLA reads it. Its own options for the CPU, no debugging of anything.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "1")

import jax
import jax.numpy as jnp
import numpy as np

tree_map = jax.tree.map


# ---- networks: {"first": (w, b), "rest": [(w, b), ...], "norms": [(scale, shift), ...] or []}, weights [out, in] -----


def mlp(net, obs, v):
    """obs [B, S], v [B, G, V] -> [B, G, out]."""
    w, b = net["first"]
    x = (obs @ w[:, : obs.shape[-1]].T + b)[:, None] + v @ w[:, obs.shape[-1] :].T
    for i, (w, b) in enumerate(net["rest"]):
        x = jax.nn.gelu(x, approximate=False)
        if net["norms"]:
            x = layer_norm(x, *net["norms"][i])
        x = x @ w.T + b
    return x


def layer_norm(x, scale, shift):
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * scale + shift
    )


def values(critics, obs, chunks):
    """[2, B, G]."""
    return jnp.stack([mlp(net, obs, chunks)[..., 0] for net in critics])


# ---- the drift likelihood:0.2+energy ---------------------------------------------------------------------------------


def distance(x, y):
    return jnp.sqrt(jnp.square(x[:, :, None] - y[:, None]).sum(-1))


def likelihood(x, pos, h=0.2):
    s = distance(x, pos).mean()
    logits = -jnp.square(distance(x, pos) / s) / (2 * h * h)  # [B, G, P]
    share = jax.nn.softmax(logits, axis=1)
    return share @ pos - share.sum(-1, keepdims=True) * x


def mean_unit(x, y, count):
    """mean_j unit(y_j - x_i); the direction to a point one stands on is 0."""
    d = distance(x, y)
    w = jnp.where(d > 0, 1 / jnp.where(d > 0, d, 1), 0)
    return (w @ y - w.sum(-1, keepdims=True) * x) / count


def energy(x, pos):
    return mean_unit(x, pos, pos.shape[1]) - mean_unit(x, x, x.shape[1] - 1)


def drift(x, pos):
    unit = lambda v: v / jnp.sqrt(jnp.square(v).mean())  # noqa: E731
    return (unit(likelihood(x, pos)) + unit(energy(x, pos))) / 2


def regress_onto(x, velocity):
    return jnp.square(x - jax.lax.stop_gradient(x + velocity)).mean()


# ---- Algorithm 1 -----------------------------------------------------------------------------------------------------


def best(critics, obs, chunks, k):
    score = values(critics, obs, chunks).mean(0)
    return jnp.take_along_axis(chunks, jax.lax.top_k(score, k)[1][..., None], 1)


def losses(learned, slow, batch, noise, cfg):
    stop = jax.lax.stop_gradient
    fixed = stop(learned)
    proposals = jnp.clip(mlp(fixed["policy"], batch["next_obs"], noise["target"]), -1, 1)
    if proposals.shape[1] > 1:
        proposals = best(fixed["critic"], batch["next_obs"], proposals, 1)
    next_value = values(slow["critic"], batch["next_obs"], proposals).mean(0)[:, 0]
    target = stop(batch["returns"] + batch["discount"] * next_value)
    data = batch["actions"].reshape(len(target), 1, -1)
    q = values(learned["critic"], batch["obs"], data)[..., 0]
    critic_loss = (jnp.square(q - target) * batch["complete"]).mean()

    a_hat = mlp(learned["policy"], batch["obs"], noise["generated"])
    steps = jnp.repeat(batch["valid"], data.shape[-1] // batch["valid"].shape[1], 1)[:, None]
    bc = regress_onto(a_hat * steps, drift(stop(a_hat) * steps, data * steps))
    pool = mlp(slow["policy"], batch["obs"], noise["candidates"])
    score = values(fixed["critic"], batch["obs"], jnp.clip(pool, -1, 1)).mean(0)
    positives = jnp.take_along_axis(pool, jax.lax.top_k(score, cfg["top_k"])[1][..., None], 1)
    improve = regress_onto(a_hat, drift(stop(a_hat), stop(positives)))
    actor_loss = bc + cfg["lam"] * improve
    return critic_loss + actor_loss, (critic_loss, actor_loss)


def make_update(cfg):
    def update(state, batch, noise):
        learned, slow, m, v, t = state
        grads, log = jax.grad(losses, has_aux=True)(learned, slow, batch, noise, cfg)
        t = t + 1
        m = tree_map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = tree_map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
        c1, c2 = 1 - 0.9**t, 1 - 0.999**t
        learned = tree_map(
            lambda p, m, v: p - cfg["lr"] * (m / c1) / (jnp.sqrt(v / c2) + 1e-8), learned, m, v
        )
        rates = {"critic": cfg["target_rate"], "policy": cfg["old_rate"]}
        slow = {
            k: tree_map(lambda a, b, r=rates[k]: a + r * (b - a), slow[k], learned[k])
            for k in rates
        }
        return (learned, slow, m, v, t), log

    return jax.jit(update, donate_argnums=0)


def network(arrays, prefix):
    """A network from torch's names: first.weight, rest.0.bias, norms.3.weight, ..."""
    get = lambda name: jnp.asarray(arrays[f"{prefix}.{name}"])  # noqa: E731

    def layers(kind):
        count = sum(key.startswith(f"{prefix}.{kind}.") for key in arrays) // 2
        return [(get(f"{kind}.{i}.weight"), get(f"{kind}.{i}.bias")) for i in range(count)]

    return {
        "first": (get("first.weight"), get("first.bias")),
        "rest": layers("rest"),
        "norms": layers("norms"),
    }


def main(path):
    arrays = dict(np.load(path))
    cfg = json.loads(str(arrays["cfg"]))

    def networks(policy, critic):
        return {
            "policy": network(arrays, f"{policy}.net"),
            "critic": [network(arrays, f"{critic}.nets.{i}") for i in range(2)],
        }

    def group(name):
        return {
            k.partition(".")[2]: jnp.asarray(a)
            for k, a in arrays.items()
            if k.startswith(f"{name}.")
        }

    learned, slow = networks("policy", "critic"), networks("old_policy", "target_critic")
    zeros = lambda: tree_map(jnp.zeros_like, learned)  # noqa: E731
    state = (learned, slow, zeros(), zeros(), jnp.zeros(()))
    batch, noise, update = group("batch"), group("noise"), make_update(cfg)
    print(json.dumps({"jax": jax.__version__}), flush=True)
    for line in sys.stdin:
        log, start = (), time.process_time()
        for _ in range(int(line)):
            state, log = update(state, batch, noise)
        jax.block_until_ready((state, log))
        print(
            json.dumps({"seconds": time.process_time() - start, "losses": [float(x) for x in log]}),
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1])
