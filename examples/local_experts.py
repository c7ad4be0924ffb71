"""Local experts of 1991: two linear experts learn the function |x|, with each of three errors.

B cases, E experts.
"""

import torch

from mixtura.models.historic import LocalExperts, LocalExpertsConfig
from mixtura.models.historic.local_experts import ERRORS

x_B1 = torch.linspace(-1, 1, 101)[:, None]
# Scaled, so that targets of the two halves differ by some standard deviations of an expert's
# Gaussian.
target_B1 = 4 * x_B1.abs()

for loss in ERRORS:
    torch.manual_seed(0)
    model = LocalExperts(LocalExpertsConfig(inputs=1, outputs=1, num_experts=2, loss=loss))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(300):
        model.error(model(x_B1), target_B1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        output = model(x_B1)
        squared = (output.blended_BO - target_B1).square().mean().item()
        # A highest posterior near 1 means that each case belongs to one expert.
        surest_B = output.posterior_BE(target_B1).amax(-1)
        said = model(torch.tensor([[-1.0], [1.0]])).outputs_BEO[:, :, 0].tolist()
    print(f"{loss}: squared error {squared:.4f}, mean highest posterior {surest_B.mean():.2f}")
    for x, outputs in zip((-1, 1), said, strict=True):
        print(
            f"  at x = {x:2}, target 4, the experts say " + ", ".join(f"{o:.1f}" for o in outputs)
        )
