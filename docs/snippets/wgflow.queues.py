import torch
import wgflow as wg

queue = wg.SampleQueue(784, size=1000, classes=10)
images, labels = torch.rand(256, 1, 28, 28), torch.arange(256) % 10
queue.push(images.flatten(1), labels)
positives = queue.draw(32, torch.arange(10))  # [10, 32, 784], 32 of every class
print(queue, positives.unflatten(-1, (1, 28, 28)).shape)
