"""The `webshop` environment: the WebShop benchmark with the text pages of its original environment."""

from __future__ import annotations

from sad.envs.webshop.env import WebShop

__all__ = ["WebShop"]
