"""Each number of images has its floor in the chart over NFE."""

from matplotlib.figure import Figure

from pipeline.drawing.charts import draw_floors
from pipeline.reporting.score_rows import frechet_rows, table_rows
from tests.report_inputs import of_sampler, parsed


def test_a_line_for_each_of_many_numbers() -> None:
    contents = [of_sampler(0, "heun", steps, 30.0) for steps in range(2, 8)]
    for place, content in enumerate(contents):
        content["metrics"][0]["bracket"] |= {"num_images": 10 + place, "floor": 5.0 + place}
    axis = Figure().subplots()
    draw_floors(axis, frechet_rows(table_rows(parsed(*contents))))
    assert [line.get_ydata()[0] for line in axis.lines] == [5.0 + place for place in range(6)]
    assert len(axis.get_legend_handles_labels()[1]) == 6
