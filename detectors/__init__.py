"""The detectors by name: the only list of them."""

from collections.abc import Callable, Mapping

from daemon.model import Detector
from detectors.canary import CanaryDetector
from detectors.capacity import CapacityDetector
from detectors.congestion import CongestionDetector
from detectors.fault import FaultDetector
from detectors.integrity import IntegrityDetector
from detectors.regions import RegionDetector
from detectors.serving import ServingDetector
from detectors.spot import SpotDetector
from detectors.storage import StorageDetector
from detectors.straggler import StragglerDetector

DETECTORS: Mapping[str, Callable[[], Detector]] = {
    "integrity": IntegrityDetector,
    "fault": FaultDetector,
    "congestion": CongestionDetector,
    "straggler": StragglerDetector,
    "serving": ServingDetector,
    "capacity": CapacityDetector,
    "canary": CanaryDetector,
    "regions": RegionDetector,
    "spot": SpotDetector,
    "storage": StorageDetector,
}
