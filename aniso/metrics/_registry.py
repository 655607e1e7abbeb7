"""What every metric key means: title, formula and citation, for docs and reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One key of results.json."""

    key: str
    title: str
    formula: str
    reference: str


_COSINE = "Ethayarajh 2019; Godey et al. 2023"
_DRIFT = "Godey et al. 2024"
_YAN = "Yan et al. 2022"

METRICS: dict[str, Metric] = {
    m.key: m
    for m in (
        Metric("mean_cosine", "Mean cosine", "(‖Σx̂‖² − N)/(N(N − 1)), all pairs i ≠ j", _COSINE),
        Metric("var_cosine", "Variance of the cosine", "over all pairs i ≠ j", _COSINE),
        Metric("std_cosine", "Standard deviation of the cosine", "√var_cosine", _COSINE),
        *(
            Metric(
                f"rogue_share_{k}",
                f"Rogue share, top {k}",
                f"share of mean_cosine in the {k} largest of (ŝ_j² − Σx̂_j²)/(N(N − 1)), ŝ = Σx̂",
                "Timkey & van Schijndel 2021",
            )
            for k in (1, 3, 10)
        ),
        Metric("drift_norm", "Drift norm", "‖Σx‖/N", _DRIFT),
        Metric("mean_norm", "Mean norm", "Σ‖x‖/N", _DRIFT),
        Metric("rms_norm", "Root mean square norm", "√(Σ‖x‖²/N)", _DRIFT),
        Metric("relative_drift", "Relative drift", "drift_norm/mean_norm", _DRIFT),
        *(
            Metric(
                f"explained_variance_{k}",
                f"Energy in the top {k}",
                f"Σ_(i≤{k}) σ²/Σσ², σ of X uncentred",
                f"{_YAN} (EV_k)",
            )
            for k in (1, 3, 10)
        ),
        Metric("rankme", "RankMe", "exp H(σ/Σσ), σ of X uncentred", "Garrido et al. 2022"),
        Metric(
            "singular_entropy_kl", "Singular entropy (KL)", "log d − H(σ/Σσ)", "Godey et al. 2024b"
        ),
        Metric("stable_rank", "Stable rank", "Σσ²/σ₁²", "Rudelson & Vershynin 2007"),
        Metric("sv_skewness", "Skewness of σ", "m₃/m₂^(3/2) of σ (biased)", _YAN),
        Metric("sv_median_ratio", "Median σ over σ₁", "median σ/σ₁", _YAN),
        Metric(
            "alpha_req",
            "α-ReQ",
            "α of λ_j ∝ j^−α: least squares of log λ_j on log j, j = 10..100, weights 1/j; "
            "λ of the centred covariance",
            "Agrawal et al. 2022",
        ),
        Metric(
            "participation_ratio",
            "Participation ratio",
            "tr(C)²/‖C‖_F², C the centred covariance",
            "Gao et al. 2017",
        ),
        Metric("isoscore", "IsoScore", "(participation_ratio − 1)/(d − 1)", "Rudman et al. 2022"),
        Metric("spectral_anisotropy", "Share of λ₁", "λ₁(C)/tr C", "Razzhigaev et al. 2024"),
        Metric("effective_rank", "Effective rank", "exp H(λ/Σλ) of C", "Roy & Vetterli 2007"),
        Metric(
            "von_neumann_entropy",
            "von Neumann entropy",
            "−tr(ρ log ρ), ρ = Ĝ/N",
            "Friedman & Dieng 2022 (log of the Vendi score)",
        ),
        Metric(
            "renyi2_entropy",
            "Rényi-2 entropy",
            "−log ‖Ĝ/N‖_F²",
            "Pasarkar & Dieng 2023 (Vendi score of order 2)",
        ),
    )
}
