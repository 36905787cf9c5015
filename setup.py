"""What pyproject.toml cannot say: data files of folders with folders in them."""

from pathlib import Path

from setuptools import setup

FILES = [
    path
    for name in ("playbooks", "checks", "topologies")
    for path in sorted(Path(name).rglob("*"))
    if path.is_file()
]
setup(
    data_files=[
        (f"share/testbed/{path.parent}", [str(path)]) for path in FILES if "__pycache__" not in path.parts
    ]
)
