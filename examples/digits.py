r"""
Handwritten digits in one step
==============================

One network evaluation per digit: a class-conditional generator is trained on the energy field

.. math:: V(x; p, q) = \mathbb E_{y\sim p}\frac{y-x}{|y-x|} - \mathbb E_{z\sim q}\frac{z-x}{|z-x|},

where p are digits of one class and q the generated ones of that class. The points are not the 64 pixels of a digit
but its first 20 principal components: directions in which the data hardly vary have little weight in distances, so
in pixels the generator would leave noise there. ``benchmarks/digits.py`` compares drifting in pixels with guidance and
with flow matching.
"""

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from torch.nn.functional import pad

import wgflow as wg

# %%
# Points
# ------
# Images [N, 8, 8] become rows of 64 pixels, and rows of 20 components, which show them without visible loss.

pixels, classes = load_digits(return_X_y=True)
whole = torch.from_numpy(pixels).float() / 8 - 1, torch.from_numpy(classes)
x, x_test, y, y_test = train_test_split(*whole, test_size=0.33, random_state=0, stratify=classes)
mean = x.mean(0)
components = torch.linalg.svd(x - mean, full_matrices=False)[2][:20].T  # [64, 20]
encode = lambda x: (x - mean) @ components
decode = lambda z: z @ components.T + mean

# %%
# Train
# -----
# Each step generates 16 digits of every class and draws 32 positives for them.

generator = torch.Generator().manual_seed(0)
every, hot = torch.arange(10), torch.eye(10)
queue = wg.SampleQueue(20, size=200, classes=10)
queue.push(encode(x), y)
torch.manual_seed(0)  # of the network's weights
lin, silu = torch.nn.Linear, torch.nn.SiLU()
net = torch.nn.Sequential(lin(26, 256), silu, lin(256, 256), silu, lin(256, 20))


def generate(labels):
    noise = torch.randn(*labels.shape, 16, generator=generator)
    return net(torch.cat([noise, hot[labels]], -1))


adam = torch.optim.Adam(net.parameters(), 5e-3)
decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 900)
for _ in range(900):
    positives = queue.draw(32, every, generator=generator)
    loss = wg.drifting_loss(
        generate(every[:, None].expand(-1, 16)), positives, field=wg.EnergyField()
    )
    adam.zero_grad()
    loss.backward()
    adam.step()
    decay.step()

# %%
# Real and generated digits
# -------------------------
# A classifier that was trained on the real digits reads the generated ones.

classifier, labels = SVC(gamma=0.064).fit(x, y), y_test.repeat(2)
with torch.no_grad():
    made = generate(labels)
figure, axes = plt.subplots(1, 2, figsize=(8, 4.6), layout="constrained")
sets = {"held-out digits": (x_test, y_test), "generated in one step": (decode(made), labels)}
accuracy = {}
for ax, (name, (digits, asked)) in zip(axes, sets.items(), strict=True):
    rows = torch.stack([digits[asked == c][:10] for c in range(10)]).view(10, 10, 8, 8)
    page = pad(rows, (1, 1, 1, 1), value=-1)
    ax.imshow(page.transpose(1, 2).reshape(100, 100), cmap="Greys", vmin=-1, vmax=1)
    accuracy[name] = classifier.score(digits, asked)
    ax.set(xticks=[], yticks=[], title=name, xlabel=f"classifier accuracy {accuracy[name]:.3f}")
figure.savefig("digits.png", dpi=130)

real = torch.stack([encode(x_test)[y_test == c][:40] for c in range(10)])
fake = torch.stack([made[labels == c][:40] for c in range(10)])
spread = wg.spread_ratio(fake, real).item()
print(f"spread of a class relative to the data: {spread:.2f} (above 0.8)")
found = f"{accuracy['generated in one step']:.3f} (above 0.9)"
print(f"classifier accuracy {found}; held-out digits {accuracy['held-out digits']:.3f}")
