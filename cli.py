"""Launcher for a checkout: `python cli.py compile model.onnx -o out.onnx` without installing."""

from onnx24.cli import main

if __name__ == "__main__":
    main()
