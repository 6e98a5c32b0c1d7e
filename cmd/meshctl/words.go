package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"guywire/mesh/api"
)

// unknown stands for what is not known, in every table.
const unknown = "–"

// say prints text. Strings among args come from the daemon, and through it
// from other nodes: they are cleaned, so that none can move the cursor, colour
// the screen or forge a line.
func (a *app) say(format string, args ...any) { sayTo(a.out, format, args...) }

func sayTo(w io.Writer, format string, args ...any) {
	for i, v := range args {
		if s, ok := v.(string); ok {
			args[i] = clean(s)
		}
	}
	fmt.Fprintf(w, format, args...)
}

// clean replaces what is not meant to be seen.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

// A paint is a colour that is used on terminals only.
type paint string

const (
	plain  paint = ""
	green  paint = "\x1b[32m"
	yellow paint = "\x1b[33m"
	red    paint = "\x1b[31m"
	reset  paint = "\x1b[0m"
)

// painted wraps s for printing with say, which leaves it as it is.
func (a *app) painted(p paint, s string) fmt.Stringer {
	if s = clean(s); a.colour && p != plain {
		s = string(p) + s + string(reset)
	}
	return text(s)
}

// text is a string that was cleaned already.
type text string

func (t text) String() string { return string(t) }

func levelPaint(l api.Level) paint {
	switch l {
	case api.OK:
		return green
	case api.Degraded:
		return yellow
	default:
		return red
	}
}

// age gives a duration in its largest unit: 35 s, 41 min, 26 h, 3 d.
func age(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	default:
		return fmt.Sprintf("%d d", int(d.Hours()/24))
	}
}

// since gives the age of t.
func (a *app) since(t *time.Time) string {
	if t == nil || t.IsZero() {
		return unknown
	}
	return age(a.now().Sub(*t))
}

// until gives how far t is ahead.
func (a *app) until(t time.Time) string {
	if d := t.Sub(a.now()); d > 0 {
		return "in " + age(d)
	}
	return "now"
}

// clock gives t as people read it here, to the millisecond.
func (a *app) clock(t time.Time) string { return t.In(a.zone).Format("2006-01-02 15:04:05.000") }

// ms gives milliseconds with the digits that matter.
func ms(v *float64) string {
	switch {
	case v == nil:
		return unknown
	case *v >= 99.95:
		return fmt.Sprintf("%.0f", *v)
	default:
		return fmt.Sprintf("%.1f", *v)
	}
}

// percent gives a loss.
func percent(v *float64) string {
	switch {
	case v == nil:
		return unknown
	case *v >= 9.95:
		return fmt.Sprintf("%.0f", *v)
	default:
		return fmt.Sprintf("%.1f", *v)
	}
}

// share gives which part of the traffic goes somewhere.
func share(percent float64) string { return fmt.Sprintf("%.0f", percent) }

// size gives bytes in decimal units.
func size(n uint64) string {
	f, unit := float64(n), 0
	for f >= 999.95 && unit < 6 {
		f, unit = f/1000, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %cB", f, "kMGTPE"[unit-1])
}

func count(c api.Count) string { return fmt.Sprintf("%d/%d", c.Good, c.Total) }

// few gives the first of a list and how many more there are.
func few[T fmt.Stringer](list []T) string {
	switch len(list) {
	case 0:
		return unknown
	case 1:
		return list[0].String()
	default:
		return fmt.Sprintf("%s +%d", list[0], len(list)-1)
	}
}

// all gives a whole list.
func all[T any](list []T, between string) string {
	if len(list) == 0 {
		return unknown
	}
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = fmt.Sprint(v)
	}
	return strings.Join(words, between)
}

// orUnknown gives s, or the sign for nothing.
func orUnknown(s string) string {
	if s == "" {
		return unknown
	}
	return s
}

// within judges a duration in a flag.
func within(flag string, d, least, most time.Duration) error {
	if d < least || d > most {
		return &usageError{fmt.Errorf("--%s is %s but must be %s to %s", flag, plainly(d), plainly(least), plainly(most))}
	}
	return nil
}

// plainly gives a duration as people write it in a flag: 720h, not 720h0m0s.
func plainly(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// prefixFlag parses a repeated --prefix.
func prefixFlag(list []string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, &usageError{fmt.Errorf("%q is not a network such as 10.20.0.0/16", s)}
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, nil
}

// flow is the two uplinks of a link.
func flow(l api.Link) string { return l.Local + " → " + l.Remote }
