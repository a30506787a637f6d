"""`make chart`: render the chart with the Helm of this machine into tests/deploy/rendered."""

from tests.deploy.charts import render

render()
