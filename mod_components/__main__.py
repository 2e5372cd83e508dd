"""Entry of ``python -m mod_components``."""

from __future__ import annotations

from mod_components.cli import main

if __name__ == "__main__":
    main()
