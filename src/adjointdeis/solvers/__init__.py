"""Samplers, each with its declared order and calculus."""

from adjointdeis.solvers.base import Solver, State
from adjointdeis.solvers.ddim import DDIM
from adjointdeis.solvers.dpm_solver import DPMSolverPP
from adjointdeis.solvers.runge_kutta import RungeKutta
from adjointdeis.solvers.sde_dpm_solver import SDEDPMSolver
from adjointdeis.solvers.step_function import StepFunction

__all__ = ["DDIM", "DPMSolverPP", "RungeKutta", "SDEDPMSolver", "Solver", "State", "StepFunction"]
