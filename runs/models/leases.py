"""What an attempt holds of its host."""

from django.db import models
from django.db.models import Q

from mlebench_web.fleet.models import Gpu


class GpuLease(models.Model):
    """A GPU held by an attempt. The database refuses a second live one."""

    attempt = models.ForeignKey("Attempt", on_delete=models.CASCADE, related_name="gpu_leases")
    gpu = models.ForeignKey(Gpu, on_delete=models.PROTECT, related_name="leases")
    released_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["gpu"], condition=Q(released_at__isnull=True), name="one_live_lease_a_gpu"
            )
        ]

    def __str__(self) -> str:
        return f"{self.gpu} for attempt {self.attempt_id}"
