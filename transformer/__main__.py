"""The commands ``python -m transformer`` and ``transformer``.

Made by tools/export.py.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the program of chapter 24, or say in a line what it lacks."""
    try:
        from transformer.program import app
    except ModuleNotFoundError as error:
        lack = f"the program needs {error.name}, which is not installed"
        sys.exit(f'{lack}: pip install ".[train]"')
    except KeyboardInterrupt:  # while torch was being imported
        sys.exit(130)
    app(prog_name="transformer")


if __name__ == "__main__":
    main()
