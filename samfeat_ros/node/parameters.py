"""Every parameter of the node in one table: default, meaning, range, and when it may change.

`Parameters` is that table and at the same time the validated values, so that the rest of the node reads
`parameters.max_keypoints` and never asks ROS. The YAML of the same names is config/samfeat.yaml.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult

from samfeat_core.engines import BY_DEVICE, ENGINES, check_choice
from samfeat_core.features import MAX_SIDE
from samfeat_core.models import model_names
from samfeat_core.tracking import TRACKERS
from samfeat_ros.topics import TRANSPORTS

# When a parameter may change: at start only, while the node is unconfigured, or at any time.
START, CONFIGURE, LIVE = "start", "configure", "live"


class ParameterError(ValueError):
    """An impossible parameter value, or combination of values; the text says which and why."""


def _entry(
    default: Any, description: str, *, change: str = CONFIGURE, low: Any = None, high: Any = None, choices: tuple = ()
) -> Any:
    metadata = {"description": description, "change": change, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Parameters:
    """The node's parameters; `validate` has passed for every instance that the node uses."""

    autostart: bool = _entry(False, "Configure and activate at start, without a lifecycle manager.", change=START)

    # the network
    model: str = _entry("samfeat-nano", f"Name of the network: {model_names()}.")
    weights: str = _entry(
        "", "Weights file (.safetensors, or the authors' .pth); empty = the weights shipped for the model."
    )
    device: str = _entry("auto", "auto, cpu, cuda or cuda:N; auto takes CUDA where it works, else the CPU.")
    engine: str = _entry(
        "auto",
        "Inference engine; auto takes the fastest one here of those that are as accurate as eager, and says why. "
        "onnxruntime runs on whatever it was built for.",
        choices=ENGINES,
    )
    require_cuda: bool = _entry(False, "Refuse to configure without a CUDA device, instead of falling back to the CPU.")
    cache_dir: str = _entry("", "Folder for built engines; empty = the user's cache folder.")
    resize: int = _entry(
        0, "Longest side in pixels of the image for the network; 0 = as received. Keypoints stay in pixels of the "
        "image as received.", low=0, high=MAX_SIDE,
    )  # fmt: skip
    image_width: int = _entry(
        640,
        "Expected width of the images: the engine for that size is built when the node is configured, for any other "
        "size beside the running one; see build_after.",
        low=32,
        high=MAX_SIDE,
    )
    image_height: int = _entry(480, "Expected height of the images; see image_width.", low=32, high=MAX_SIDE)
    build_after: int = _entry(
        3, "Frames of a new size after which its engine is built. Until it is there, frames of that size give no "
        "output, and those of other sizes go on.", low=1, high=1000,
    )  # fmt: skip
    max_keypoints: int = _entry(1024, "Largest number of keypoints per frame.", change=LIVE, low=1, high=16384)
    threshold: float = _entry(
        -1.0, "Smallest score of a keypoint; negative = the model's own.", change=LIVE, low=-1.0, high=1.0
    )
    nms_radius: int = _entry(
        -1, "Radius in pixels in which only the best keypoint stays; 0 or less = the model's own.", low=-1, high=32
    )
    border: int = _entry(4, "Width in pixels of the image border without keypoints.", low=0, high=256)

    # matching and tracks
    tracker: str = _entry(
        "hybrid",
        "match follows keypoints from frame to frame by their descriptors; flow, by optical flow; hybrid, by both, and "
        "it finds lost ones again. Changing it restarts the tracks.",
        change=LIVE,
        choices=TRACKERS,
    )
    track_memory: int = _entry(
        20, "Frames for which a lost track can be found again, with tracker hybrid.", change=LIVE, low=0, high=100
    )
    track_spacing: float = _entry(
        3.0, "Pixels that a new point keeps from every track, with tracker flow or hybrid.", change=LIVE, low=0.0,
        high=100.0,
    )  # fmt: skip
    track_grid: int = _entry(
        0, "Cells along either side of the image over which new points are spread evenly, with tracker flow or hybrid; "
        "0 = the strongest ones.", change=LIVE, low=0, high=64,
    )  # fmt: skip
    min_similarity: float = _entry(
        -1.0, "Smallest similarity (cosine) of a match; -1 = no bound.", change=LIVE, low=-1.0, high=1.0
    )
    ratio: float = _entry(
        1.0, "Largest ratio of the distances to the best and the second-best match; 1 = no bound.", change=LIVE,
        low=0.01, high=1.0,
    )  # fmt: skip
    verify: bool = _entry(True, "Continue tracks through geometric inliers only.", change=LIVE)
    inlier_threshold: float = _entry(
        1.5, "Largest epipolar distance of an inlier in pixels.", change=LIVE, low=0.01, high=100.0
    )
    max_gap: float = _entry(
        1.0, "Longest time in seconds between two frames of one track.", change=LIVE, low=0.001, high=3600.0
    )

    # the input
    image_transport: str = _entry(
        "raw", "raw subscribes to sensor_msgs/Image on `image`, compressed to CompressedImage on `image`/compressed.",
        choices=tuple(TRANSPORTS),
    )  # fmt: skip
    full_scale_16bit: int = _entry(
        65535, "Value of a 16-bit image that becomes white; 4095 for a 12-bit camera.", change=LIVE, low=1, high=65535
    )
    rectified: bool = _entry(False, "The images are rectified: take P of CameraInfo, and no distortion.", change=LIVE)
    mask_file: str = _entry("", "Image file whose zero pixels get no keypoints; a message on `mask` replaces it.")

    # the output
    tracks_layout: str = _entry(
        "fusion",
        "Layout of ~/tracks: 9 channels for VINS-Fusion, 5 for VINS-Mono.",
        change=LIVE,
        choices=("fusion", "mono"),
    )
    tracks_min_length: int = _entry(
        2, "Frames that a point must have been seen in to be on ~/tracks.", change=LIVE, low=1, high=100
    )
    overlay_tail: int = _entry(10, "Length in frames of the tails on ~/overlay.", change=LIVE, low=0, high=200)

    def validate(self) -> Parameters:
        """Check all values, each alone and together.

        Returns:
            itself.

        Raises:
            ParameterError: with the reason.
        """
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if not self.model:
            raise ParameterError(f"model is empty, expected one of {model_names()}")
        try:
            check_choice(self.device, self.engine)
        except ValueError as error:
            raise ParameterError(str(error)) from None
        if self.require_cuda and (self.device == "cpu" or self.engine not in ("auto", *BY_DEVICE["cuda"])):
            raise ParameterError(f"require_cuda contradicts device {self.device!r} with engine {self.engine!r}")
        if 0 < self.resize < max(32, 2 * self.border + 1):
            raise ParameterError(f"resize is {self.resize}, expected 0 or at least 32 and more than two borders")
        return self

    def changed(self, values: Mapping[str, Any], configured: bool) -> Parameters:
        """A validated copy with some values replaced.

        Args:
            values: new values by name.
            configured: the node has left `unconfigured`, so that only live parameters may change.

        Raises:
            ParameterError: a value is impossible, or may not change now.
        """
        for name, value in values.items():
            change = self.__dataclass_fields__[name].metadata["change"]
            if configured and change == CONFIGURE and value != getattr(self, name):
                raise ParameterError(f"{name} takes effect when the node is configured: call cleanup first")
        return dataclasses.replace(self, **values).validate()


NAMES = tuple(field.name for field in dataclasses.fields(Parameters))


def _check(field: dataclasses.Field, value: Any) -> None:
    low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
    kind = type(field.default)
    if type(value) is not kind:
        raise ParameterError(f"{field.name} is {value!r}, expected {kind.__name__}")
    if choices and value not in choices:
        raise ParameterError(f"{field.name} is {value!r}, expected one of {', '.join(choices)}")
    if low is not None and not low <= value <= high:
        raise ParameterError(f"{field.name} is {value}, expected {low} to {high}")


def _descriptor(field: dataclasses.Field) -> ParameterDescriptor:
    low, high, choices, change = (field.metadata[key] for key in ("low", "high", "choices", "change"))
    ranges: dict[str, Any] = {}
    if isinstance(low, float):
        ranges["floating_point_range"] = [FloatingPointRange(from_value=low, to_value=high)]
    elif isinstance(low, int):
        ranges["integer_range"] = [IntegerRange(from_value=low, to_value=high, step=1)]
    limits = {CONFIGURE: "Changes while unconfigured only.", START: "Read at start.", LIVE: ""}[change]
    return ParameterDescriptor(
        name=field.name,
        description=" ".join(filter(None, [field.metadata["description"], limits])),
        additional_constraints=f"one of: {', '.join(choices)}" if choices else "",
        read_only=change == START,
        **ranges,
    )


def declare(node: Any) -> Parameters:
    """Declare every parameter on a node, and read what the user set.

    Returns:
        the values, not yet validated as a whole: a lifecycle node says what is wrong when it is configured.

    Raises:
        rclpy.exceptions.InvalidParameterTypeException, InvalidParameterValueException: type or range is wrong.
    """
    values = {
        field.name: node.declare_parameter(field.name, field.default, _descriptor(field)).value
        for field in dataclasses.fields(Parameters)
    }
    return Parameters(**values)


def apply(current: Parameters, changes: Iterable[Any], configured: bool) -> tuple[Parameters, SetParametersResult]:
    """What an on-set-parameters callback answers: the new values, or the old ones and the reason why.

    Args:
        current: values in use.
        changes: rclpy Parameters; those which are not of this table (use_sim_time, qos_overrides) pass.
        configured: see `Parameters.changed`.
    """
    values = {parameter.name: parameter.value for parameter in changes if parameter.name in NAMES}
    try:
        return current.changed(values, configured), SetParametersResult(successful=True)
    except ParameterError as error:
        return current, SetParametersResult(successful=False, reason=str(error))
