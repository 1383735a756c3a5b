"""Model cards of the embedded profile, written from what was trained and measured."""

from typing import Any


def model_cards(files: dict[str, dict[str, Any]], quality: dict[str, Any]) -> str:
    """Markdown page with one card per network.

    Args:
        files: Manifest entries, with the training record under "training".
        quality: What `publish.py` measured.
    """
    parts = [
        "# Model cards of the embedded profile",
        "",
        "Written by `python -m experiments.mini.publish` from the weight files and from what it "
        "measured; do not edit by hand. Trained by this repository's own commands on synthetic "
        "faces rendered from CC0 3-D head data: no photograph of a person is involved. Licence: "
        "MIT.",
        "",
        "Limits: low-resolution computer graphics. No claim of photo-realism, of demographic "
        "validity, or that a rate or a threshold transfers to real faces.",
        "",
        *_autoencoder(files["diffae.safetensors"], quality["autoencoder"]),
        *_recognisers(files, quality),
    ]
    return "\n".join(parts) + "\n"


def _autoencoder(entry: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    training = entry["training"]
    recipe, initial = training["recipe"], training["initial"]
    twenty, hundred, noise = (
        measured[key] for key in ("random_noise_20", "random_noise_100", "noise")
    )
    return [
        "## diffae: diffusion autoencoder",
        "",
        "The official block structure with other numbers: "
        + ", ".join(f"{k} {v}" for k, v in recipe["network"].items() if k != "_target_")
        + f". It predicts m, the clean image up to a white residual of standard deviation "
        f"s = {entry['spread']:g}, and is used as a noise prediction, "
        "eps = sigma (x_t - alpha m) / (sigma^2 + alpha^2 s^2); the official weights predict eps.",
        "",
        "| | |",
        "|---|---|",
        f"| data | {_pool(recipe['pool'])} |",
        f"| initial weights | {_initial(initial)} |",
        f"| recipe | {training['steps']} steps of {recipe['batch_size'] * training['processes']} "
        f"images in {training['processes']} processes, AdamW at {recipe['learning_rate']:g}, "
        f"cosine of {recipe['learning_rate_steps'] or recipe['steps']} steps, "
        f"EMA {recipe['ema_decay']}, seed {training['seed']}; the encoder is "
        f"{'trained too' if recipe['train_encoder'] else 'left as it was'} |",
        f"| command | `python run.py task={recipe['name'].replace('-', '/', 1)}"
        f"{'' if initial is None else ' task.initial=<initial weights>'}` |",
        f"| file | {entry['bytes'] / 1e6:.1f} MB, SHA-256 `{entry['sha256'][:16]}` |",
        "",
        f"Measured on {measured['images']} unseen faces. A picture is as sharp as a rendered one "
        "at a ratio of 1; grain is above, blur below. White noise has a standard deviation of 1, "
        "also of its 8x8 block means times 8, and no correlation with the image.",
        "",
        "| | 20 steps | 100 steps |",
        "|---|---|---|",
        f"| the right codes from random noise, PSNR | {twenty['psnr']:.1f} dB | "
        f"{hundred['psnr']:.1f} dB |",
        f"| SSIM | {twenty['ssim']:.2f} | {hundred['ssim']:.2f} |",
        f"| energy above 0.35 cycles a pixel, ratio | {twenty['fine_energy_ratio']:.2f} | "
        f"{hundred['fine_energy_ratio']:.2f} |",
        f"| standard deviation of the Laplacian, ratio | {twenty['laplacian_ratio']:.2f} | "
        f"{hundred['laplacian_ratio']:.2f} |",
        "",
        "| encoded in 250 steps | |",
        "|---|---|",
        f"| standard deviation of x_T | {noise['std']:.2f} |",
        f"| of its 8x8 block means, times 8 | {noise['block_means']:.2f} |",
        f"| correlation with the image | {noise['image_correlation']:.2f} |",
        f"| decoded in 20 steps of the official grid | PSNR {measured['reconstruction_psnr']:.1f} "
        f"dB, SSIM {measured['reconstruction_ssim']:.3f} |",
        f"| decoded in 20 steps equal in log-SNR | PSNR "
        f"{measured['reconstruction_lmbda_psnr']:.1f} dB |",
        "",
        "![Source, reconstruction, two samples from random noise; four times across]"
        "(autoencoder.png)",
        "",
        "![Source, DiM morph, its codes from random noise, other source; twice across](morphs.png)",
        "",
    ]


def _initial(initial: dict[str, Any] | None) -> str:
    if initial is None:
        return "random"
    before = initial["recipe"]
    return (
        f"SHA-256 `{initial['sha256'][:16]}`, the weights embedded before: {initial['steps']} "
        f"steps of {before['batch_size']} that predicted {initial['prediction']}, on "
        f"{_pool(before['pool'])}; in the repository's history"
    )


def _recognisers(files: dict[str, dict[str, Any]], quality: dict[str, Any]) -> list[str]:
    lines = [
        "## Recognisers",
        "",
        "Small IResNets over the face crop (no hair, no shirt), trained with an angular margin. "
        "Training identities are pairwise disjoint and disjoint from every test identity. Half of "
        "the training pictures show an identity's bones under other skin, hair and brows, so that "
        "bones have to tell.",
        "",
        "| network | use | margin head | training identities x images | steps | file | "
        "FNMR at FMR 0.1% | shape only | texture only |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in files.items():
        if entry.get("kind") != "recogniser":
            continue
        training = entry["training"]
        recipe = training["recipe"]
        measured = quality["recognisers"][entry["name"]]
        shortcut = quality["shortcut"][entry["name"]]
        lines.append(
            f"| {name} | {entry['label']} | {recipe['head']['_target_'].rsplit('.', 1)[-1]} | "
            f"{recipe['pool']['identities']} x {recipe['pool']['images_per_identity']} | "
            f"{training['steps']} | {entry['bytes'] / 1e6:.1f} MB | "
            f"{_share(measured['fnmr_k'], measured['fnmr_n'])} | "
            f"{100 * shortcut['shape_only']['fnmr_at_own_fmr_1%']:.1f}% | "
            f"{100 * shortcut['texture_only']['fnmr_at_own_fmr_1%']:.1f}% |"
        )
    others = [n for n in quality["recognisers"] if f"{n}.safetensors" not in files]
    for name in others:
        measured, shortcut = quality["recognisers"][name], quality["shortcut"][name]
        lines.append(
            f"| {name} | black-box judge, not trained here | | | | | "
            f"{_share(measured['fnmr_k'], measured['fnmr_n'])} | "
            f"{100 * shortcut['shape_only']['fnmr_at_own_fmr_1%']:.1f}% | "
            f"{100 * shortcut['texture_only']['fnmr_at_own_fmr_1%']:.1f}% |"
        )
    count = next(iter(quality["shortcut"].values()))["shape_only"]["identities"]
    lines += [
        "",
        "FNMR at FMR 0.1%: on identities that no network has seen, threshold from the same "
        "identities' impostor pairs. Shape only: one appearance on "
        f"{count} skeletons; texture only: {count} appearances on one skeleton; each FNMR at that "
        "set's own FMR of 1%. A reader of bones has a low error on the first and a high one on the "
        "second; a reader of hair and skin the other way round.",
        "",
        "## Pairs",
        "",
        f"{quality['pairs']['per_sex']} most similar pairs of each sex by the selector network "
        f"(similarity of the last: {quality['pairs']['similarity_of_the_last']:.3f}), leaving "
        f"out the {quality['pairs']['excluded_false_matches']} pairs that some recogniser, dlib "
        "included, falsely matches at FMR 0.1%. Chosen before any morph was made.",
    ]
    return lines


def _pool(pool: dict[str, Any]) -> str:
    return (
        f"{pool['identities']} synthetic identities x {pool['images_per_identity']} images, "
        f"role {pool['role']}"
    )


def _share(k: int, n: int) -> str:
    return f"{100 * k / n:.2f}% ({k}/{n})"
