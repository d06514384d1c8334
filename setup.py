"""The packages of the wheel; pyproject.toml, which has the rest, cannot take one from another folder by itself."""

from setuptools import find_packages, setup

setup(
    # In the repository the weights lie beside the package, installed inside it (`app.core.weights_dir`).
    packages=[*find_packages(include=["app", "app.*"]), "app.weights"],
    package_dir={"app.weights": "weights"},
    package_data={"app.report": ["assets/*"], "app.training": ["recipes/*.toml"], "app.weights": ["*"]},
)
