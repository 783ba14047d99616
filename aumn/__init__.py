"""AUMN at scale: weakly-supervised temporal action localization, from features to a registered model and exact mAP."""

__version__ = "0.1.0"
