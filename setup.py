"""Installs samfeat_core and samfeat_ros as the ROS 2 package samfeat_ros; training/ stays on the workstation."""

from glob import glob

from setuptools import find_packages, setup

NAME = "samfeat_ros"
EXECUTABLES = {
    "samfeat_node": "node.samfeat_node",
    "sequence_to_bag": "replay.sequence_to_bag",
    "demo": "replay.demo",
    "evaluate_bag": "replay.evaluate_bag",
    "visual_odometry": "odometry.visual_odometry",
}
CONFIGS = ("yaml", "xml", "rviz", "json", "service")

setup(
    name=NAME,
    version="0.2.0",
    description="Learned visual features for ROS 2: keypoints, descriptors, matches and tracks of a camera stream",
    license="Apache-2.0",
    author="samfeat_ros maintainers",
    maintainer="samfeat_ros maintainers",
    maintainer_email="maintainers@samfeat-ros.invalid",
    packages=find_packages(include=["samfeat_core", "samfeat_core.*", "samfeat_ros", "samfeat_ros.*"]),
    package_data={
        "samfeat_core": ["engines/*.json", "weights/*.safetensors", "weights/*.json", "weights/*.md", "py.typed"],
        "samfeat_ros": ["py.typed", "replay/evaluation/templates/*"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.launch.py")),
        (f"share/{NAME}/config", [path for kind in CONFIGS for path in glob(f"config/*.{kind}")]),
        (f"share/{NAME}/rtabmap", glob("samfeat_ros/rtabmap/samfeat_*.py")),
    ],
    python_requires=">=3.10",
    # ROS brings OpenCV (rosdep); torch or openvino is chosen per robot: docs/robot.md.
    install_requires=["setuptools", "numpy>=1.21", "numba>=0.55", "simplejpeg>=1.7"],
    extras_require={
        # torch builds the engine from the weights; later starts do without it
        "openvino": ["openvino>=2024.0", "torch>=2.1", "safetensors"],
        "torch": ["torch>=2.1", "safetensors"],
        # the first runs a graph that the second makes, there or on another machine
        "onnxruntime": ["onnxruntime>=1.16"],
        "export": ["onnx>=1.17", "onnxscript>=0.7", "torch>=2.5", "safetensors"],
        "scfeat": ["torchvision"],
        # where there is no ROS
        "opencv": ["opencv-python-headless"],
        # demo, evaluate_bag and sequence_to_bag
        "tools": ["rosbags>=0.10", "mcap", "lz4", "zstandard", "evo", "psutil", "PyYAML", "matplotlib", "tqdm"]
        + ["pycolmap>=4.0", "typer>=0.12.5", "jinja2>=3.0"],
        # visual_odometry
        "odometry": ["gtsam>=4.2"],
        # evaluate_bag --rerun
        "rerun": ["rerun-sdk>=0.41"],
        "test": ["pytest"],
    },
    zip_safe=False,
    entry_points={
        "console_scripts": [f"{script} = samfeat_ros.{module}:main" for script, module in EXECUTABLES.items()]
    },
)
