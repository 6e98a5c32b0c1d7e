package bench

import (
	"bytes"
	"strings"
	"testing"

	"guywire/integration/lab/screen"
)

func TestFigures(t *testing.T) {
	var out bytes.Buffer
	b := &bench{screen: screen.New(&out, false), part: parts[0]}
	b.tell(
		figure{What: "a gap", Value: 61.24, Unit: "ms"}.most(60),
		figure{What: "a ratio", Value: 1.9}.least(1.85),
		figure{What: "a count", Value: 0}.most(0),
		figure{What: "a rate", Value: 1234.5, Unit: "Mbit/s"},
	)
	want := `
   WHAT     FIGURE          TARGET
   a gap      61.2  ms        ≤ 60  missed
   a ratio    1.90          ≥ 1.85  ok
   a count       0             ≤ 0  ok
   a rate     1234  Mbit/s       –
`
	if got := "\n" + out.String(); got != want {
		t.Errorf("got%swant%s", got, want)
	}
	if len(b.report.Figures) != 4 || b.report.Figures[1].Part != parts[0].name {
		t.Errorf("reported %+v", b.report.Figures)
	}
}

func TestGaps(t *testing.T) {
	median, p99 := gaps("cut", []float64{100, 50, 60, 70, 80})
	if median.Value != 70 || p99.Value != 100 || !strings.Contains(median.What, "5") {
		t.Errorf("%+v, %+v", median, p99)
	}
}

func TestRefusesNonsense(t *testing.T) {
	good := options{out: &bytes.Buffer{}, rounds: 1, transfer: 1, cuts: 1, minutes: 1}
	for what, spoil := range map[string]func(*options){
		"no benchmark":      func(o *options) { o.only = []string{"espresso"} },
		"no routing system": func(o *options) { o.systems = []string{"token-ring"} },
		"positive":          func(o *options) { o.cuts = 0 },
	} {
		o := good
		spoil(&o)
		if err := run(t.Context(), o); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
