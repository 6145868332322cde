import torch
import wgflow as wg

images, data = torch.rand(64, 1, 28, 28, requires_grad=True), torch.rand(64, 1, 28, 28)
network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 5, stride=4), torch.nn.Flatten())
loss = wg.DriftingLoss(wg.EnergyField(), features=[network.requires_grad_(False)])
report = loss(images, data)  # fields act on feature vectors [64, F]
report.loss.backward()
print(report.loss, report.spread, images.grad.shape)
