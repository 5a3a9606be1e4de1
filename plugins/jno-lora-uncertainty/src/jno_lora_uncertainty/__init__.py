"""Calibrated error bars from a few small adapters over one base, trained in one program."""

from ._calibrated import (
    Calibrated,
    CalibrationReport,
    Interval,
    Prediction,
    calibrate,
    interval,
    predict,
)
from ._classes import CalibratedClasses, calibrate_classes, probabilities
from ._ensemble import Ensemble
from ._files import load_ensemble, save_ensemble
from ._fit_interval import FitCalibration, FittedInterval, calibrate_fit, fit_interval
from ._folds import Folds, folds
from ._scales import Scales, fit_scales

__all__ = [
    "Calibrated",
    "CalibratedClasses",
    "CalibrationReport",
    "Ensemble",
    "FitCalibration",
    "FittedInterval",
    "Folds",
    "Interval",
    "Prediction",
    "Scales",
    "calibrate",
    "calibrate_classes",
    "calibrate_fit",
    "fit_interval",
    "fit_scales",
    "folds",
    "interval",
    "load_ensemble",
    "predict",
    "probabilities",
    "save_ensemble",
]
