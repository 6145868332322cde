import torch
import wgflow as wg

network = torch.nn.Conv2d(1, 8, 5, stride=2).requires_grad_(False)


def features(images):
    return [images.flatten(1), *wg.patch_features(network(images), patches=(4,))]


loss = wg.DriftingLoss(wg.EnergyField(0.5).standardized(), features=[features])
images, data = torch.rand(10, 16, 1, 28, 28, requires_grad=True), torch.rand(10, 32, 1, 28, 28)
print(loss(images, data))  # ten classes: loss, displacement, spread
