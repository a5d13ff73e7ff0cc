"""Calibration files of camera_calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from samfeat_core.errors import FileError, one_line
from samfeat_ros.replay.bags import typestore
from samfeat_ros.topics import CAMERA_INFO


def read_calibration(path: Path) -> bytes:
    """A calibration file as camera_calibration writes it, as the CDR bytes of a CameraInfo.

    Raises:
        FileError: the file is missing or not such a file; the line says which key.
    """
    types = typestore().types
    try:
        content = yaml.safe_load(path.read_text())
        width, height = int(content["image_width"]), int(content["image_height"])
        k = _numbers(content, "camera_matrix", 9)
        d = _numbers(content, "distortion_coefficients", None)
        model = str(content.get("distortion_model", "plumb_bob"))
        r = _numbers(content, "rectification_matrix", 9) if "rectification_matrix" in content else np.eye(3).ravel()
        default_p = np.column_stack([k.reshape(3, 3), np.zeros(3)]).ravel()
        p = _numbers(content, "projection_matrix", 12) if "projection_matrix" in content else default_p
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from error
    except KeyError as error:
        raise FileError(f"{path}: key {error} is missing; expected a file of camera_calibration") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, AttributeError) as error:
        raise FileError(f"{path}: not a file of camera_calibration ({one_line(error, 160)})") from error
    header: Any = types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](0, 0), "")
    roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    info = types[CAMERA_INFO](header, height, width, model, d, k, r, p, 0, 0, roi)
    return bytes(typestore().serialize_cdr(info, CAMERA_INFO))


def _numbers(content: dict[str, Any], key: str, count: int | None) -> np.ndarray:
    values = np.array(content[key]["data"], np.float64).ravel()
    if count is not None and len(values) != count:
        raise ValueError(f"{key} has {len(values)} numbers, expected {count}")
    return values
