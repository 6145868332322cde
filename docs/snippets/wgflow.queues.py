import torch
import wgflow as wg

queue = wg.SampleQueue((1, 28, 28), size=1000, classes=10, dtype=torch.uint8)
images = torch.randint(256, (400, 1, 28, 28), dtype=torch.uint8)
queue.push(images, torch.arange(400) % 10)
positives = queue.draw(32, torch.arange(10)) / 127.5 - 1  # [10, 32, 1, 28, 28], 32 of every class
print(queue, positives.shape)
