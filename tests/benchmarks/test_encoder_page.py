from benchmarks.encoder import BEGIN, END, PAGE, render, stored_cells


def test_the_page_has_the_figures_of_the_stored_cells():
    figures = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    assert figures.strip() == render(stored_cells()).strip() and len(stored_cells()) > 1
