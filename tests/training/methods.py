"""A job of every method, small enough for a test: 8 x 8 digits in three colours, batches of 16."""

from __future__ import annotations

COMMON = """
name: tiny
seed: 3
data: {train: {source: digits, split: train}, test: {source: digits, split: test}}
evaluation: []
resources: {runtime: local, workers: 1}
checkpoint: {every_steps: 4, keep: 2}
tracking: {experiment: tests, every_steps: 1, system_metrics: false}
"""
RESNET = "{type: resnet18, stem: cifar, width: 4, zero_init_residual: false}"
VIEW = "{crop_area: [0.3, 1.0], blur: {probability: 0.5}}"
LARS = "optimizer: {type: lars, learning_rate: 2.0, per: 256, weight_decay: 1.0e-4}"
ADAMW = "optimizer: {type: adamw, learning_rate: 0.002, per: null, weight_decay: 0.04, final_weight_decay: 0.4}"

METHODS: dict[str, str] = {
    "simclr": f"""
algorithm: {{type: simclr, backbone: {RESNET}, projection_dim: 8, temperature: 0.5, augmentation: {VIEW}}}
optimization: {{{LARS}, schedule: {{type: cosine, warmup_epochs: 0.02}}, batch_size: 16, steps: 10}}
""",
}


def job_text(method: str) -> str:
    """The job file of a method."""
    return COMMON + METHODS[method]
