"""The dashboard as code: one saved view over the runs of a Weights & Biases project.

python -m experiments.dashboard.dashboard --entity TEAM [--project adjointdeis] [--print]
"""

import argparse

import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces

ATTACKS = ("dim_a", "adjoint_deis_ode", "adjoint_deis_sde", "exact", "guided")
SYSTEMS = ("adaface", "arcface", "elasticface")
PROBES = ("other", "source")
VARIANT = "MMPMR"


def view(
    entity: str,
    project: str,
    attacks: tuple[str, ...] = ATTACKS,
    systems: tuple[str, ...] = SYSTEMS,
) -> workspaces.Workspace:
    """The view, not yet saved; `attacks` and `systems` are the names that the runs log."""
    rates = {
        (system, probe): [f"{VARIANT}/{attack}/{system}/{probe}" for attack in attacks]
        for probe in PROBES
        for system in systems
    }
    success = [
        panels.BarPlot(
            title=f"{VARIANT}, {system}, probe: {probe}", metrics=keys, range_x=(0.0, 1.0)
        )
        for (system, probe), keys in rates.items()
    ]
    cost = [
        panels.ScatterPlot(
            title=f"{VARIANT} against NFE: {attack}, {systems[0]}",
            x=panels.SummaryMetric(f"nfe_paper/{attack}"),
            y=panels.SummaryMetric(f"{VARIANT}/{attack}/{systems[0]}/other"),
            log_x=True,
            range_y=(0.0, 1.0),
        )
        for attack in attacks
    ]
    descent = [
        panels.LinePlot(
            title=title,
            y=[f"{attack}/{key}" for attack in attacks],
            log_y=key == "gradient_norm",
            title_x="optimisation step, batch after batch",
        )
        for key, title in (("loss", "Identity loss"), ("gradient_norm", "Gradient norm"))
    ]
    errors = [
        panels.BarPlot(title=title, metrics=[f"gradient_{key}/{attack}" for attack in attacks])
        for key, title in (("relative", "Gradient error"), ("cosine", "Cosine to the exact one"))
    ]
    ablation = panels.ParallelCoordinatesPlot(
        title="Ablations: what was set, what came of it",
        columns=[
            panels.ParallelCoordinatesPlotColumn(metric=metric)
            for metric in (
                panels.Config("gradient.steps"),
                panels.Config("optimizer.lr"),
                panels.Config("gradient.states"),
                panels.SummaryMetric("gradient_relative/guided"),
                *(panels.SummaryMetric(f"{VARIANT}/guided/{s}/other") for s in systems),
            )
        ],
    )
    sections = (
        ("Who gets in", success),
        ("Morphs of the fixed pairs", [panels.MediaBrowser(media_keys=_media(attacks))]),
        ("What it costs", cost),
        ("Optimisation", descent),
        ("How wrong the gradient is", errors),
        ("Ablations", [ablation]),
        ("Every number", [panels.WeavePanelSummaryTable(table_name="result")]),
    )
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="AdjointDEIS",
        sections=[workspaces.Section(name=n, panels=p, is_open=True) for n, p in sections],
    )


def _media(attacks: tuple[str, ...]) -> list[str]:
    return [f"morphs/{attack}" for attack in attacks]


def main() -> None:
    """Saves the view and prints its address, or lists its panels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entity", required=True, help="team or user")
    parser.add_argument("--project", default="adjointdeis")
    parser.add_argument("--print", action="store_true", help="send nothing, list the panels")
    options = parser.parse_args()
    made = view(options.entity, options.project)
    if options.print:
        for section in made.sections:
            titles = [
                getattr(panel, "title", None) or type(panel).__name__ for panel in section.panels
            ]
            print(f"{section.name}: {'; '.join(titles)}")
        return
    print(made.save().url)


if __name__ == "__main__":
    main()
