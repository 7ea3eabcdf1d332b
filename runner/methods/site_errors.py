"""What rounding a weight does to the output of its site, as pure functions on tensors.

With H = (2 / tokens) Σ x xᵀ the second moment of the inputs and E the change of W, output r of the site changes by
E_r x, so that (E H Eᵀ)_rr / 2 is its mean square change over tokens.
"""

from __future__ import annotations

import torch

from runner.methods.gptq import output_energy


def relative_error(change: torch.Tensor, weight: torch.Tensor, hessian: torch.Tensor | None) -> float:
    """Return tr(E H Eᵀ) / tr(W H Wᵀ) of E and W [out, in], H [in, in]; without H, ‖E‖² / ‖W‖².

    It is 0 where W gives zeros.
    """
    changed, energy = (
        each.float().square().sum() if hessian is None else output_energy(each, hessian).sum()
        for each in (change, weight)
    )
    return float(changed / energy) if float(energy) > 0 else 0.0


def forecast_divergence(change: torch.Tensor, hessian: torch.Tensor, gradients: torch.Tensor) -> float:
    """Return ½ Σ_r γ_r (E H Eᵀ)_rr / 2: the divergence in nats per token to second order, rows taken as independent.

    gradients  float32 [out]: γ, the mean over tokens of the squared gradient of the negative log-likelihood of tokens
               that the model itself draws, with respect to each output: the diagonal of the Fisher information of the
               outputs, as K-FAC (Martens and Grosse 2015, equation 14) factors it with the inputs' second moment
    """
    return float((gradients.double() * output_energy(change, hessian).double()).sum() / 4)


def effective_columns(hessian: torch.Tensor) -> float:
    """Return (tr H)² / tr H²: the number of columns of equal energy that would spread as far; 0 of no input."""
    squares = float(hessian.double().square().sum())
    return float(hessian.diagonal().double().sum() ** 2) / squares if squares > 0 else 0.0


def outliers(norms: torch.Tensor) -> float:
    """Return the largest norm of an input column over the median; over the mean, where the median is 0."""
    middle = float(norms.median()) or float(norms.mean())
    return float(norms.max()) / middle if middle > 0 else 0.0
