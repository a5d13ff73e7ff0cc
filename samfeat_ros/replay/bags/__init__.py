"""Reading rosbags that may be broken, foreign or huge.

ROS 2 bags (MCAP, sqlite3; compressed per message, chunk or file; split) and ROS 1 bags are read by `rosbags`. What
rosbags cannot read to the end is read a second time, record by record, past the damaged place (`salvage`). Every loss
is counted and stated in `Bag.problems`. A bag of which nothing can be read is a `BagError` of one line that names the
file.

Messages are handed out as CDR bytes, ready for `rclpy.serialization.deserialize_message`. Message definitions inside
a bag are not parsed: the few types that this package reads are the same in every ROS distribution, and a bag with one
unparsable custom type stays readable.
"""

from samfeat_ros.replay.bags.messages import BagError, BagMessage, BagTopic, decode, typestore
from samfeat_ros.replay.bags.reader import Bag

__all__ = ["Bag", "BagError", "BagMessage", "BagTopic", "decode", "typestore"]
