"""Samplers, each with its declared order and calculus."""

from adjointdeis.solvers.adaptive import ToleranceError
from adjointdeis.solvers.base import Solver, State, count_evaluations
from adjointdeis.solvers.bdia import BDIA
from adjointdeis.solvers.belm import OBELM
from adjointdeis.solvers.coupling import Coupling, GridEndError
from adjointdeis.solvers.ddim import DDIM
from adjointdeis.solvers.dpm_solver import DPMSolverPP
from adjointdeis.solvers.edict import EDICT
from adjointdeis.solvers.flow_euler import FlowEuler
from adjointdeis.solvers.pair import Pair
from adjointdeis.solvers.reversible import AmplificationWarning, ReversibleSolver
from adjointdeis.solvers.rex import Rex
from adjointdeis.solvers.runge_kutta import RungeKutta
from adjointdeis.solvers.sde_dpm_solver import SDEDPMSolver
from adjointdeis.solvers.sde_dpm_solver_pp import SDEDPMSolverPP
from adjointdeis.solvers.step_function import StepFunction

__all__ = [
    "BDIA",
    "DDIM",
    "EDICT",
    "OBELM",
    "AmplificationWarning",
    "Coupling",
    "DPMSolverPP",
    "FlowEuler",
    "GridEndError",
    "Pair",
    "ReversibleSolver",
    "Rex",
    "RungeKutta",
    "SDEDPMSolver",
    "SDEDPMSolverPP",
    "Solver",
    "State",
    "StepFunction",
    "ToleranceError",
    "count_evaluations",
]
