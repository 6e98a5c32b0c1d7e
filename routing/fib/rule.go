package fib

import (
	"errors"
	"fmt"
	"slices"

	"guywire/mesh"
	"guywire/mesh/kernel"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	sizeofRuleHeader = 12 // struct fib_rule_hdr
	actionTable      = 1  // FR_ACT_TO_TBL
	ruleFirst        = mesh.RuleUplinkBase
	ruleLast         = mesh.RuleUplinkBase + 99
)

// A foundRule is a rule of one family. If odd, it holds more or other
// conditions than a kernel.Rule can say, so it is not what we wrote.
type foundRule struct {
	kernel.Rule
	odd bool
	raw []byte // as dumped, to delete exactly this one
}

// putRule makes the rule the only one of ours with its priority, in each
// family: the new one is added before others are deleted.
func (f *FIB) putRule(r kernel.Rule) error {
	for _, family := range f.families() {
		err := f.write.change(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ruleParts(family, r)...)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		if err := f.deleteRules(family, func(old foundRule) bool {
			return old.Priority == r.Priority && (old.odd || old.Rule != r)
		}); err != nil {
			return err
		}
	}
	return nil
}

// deleteRule deletes all rules of ours with the priority.
func (f *FIB) deleteRule(r kernel.Rule) error {
	for _, family := range f.families() {
		if err := f.deleteRules(family, func(old foundRule) bool { return old.Priority == r.Priority }); err != nil {
			return err
		}
	}
	return nil
}

func (f *FIB) deleteRules(family uint8, which func(foundRule) bool) error {
	found, err := f.write.rules(family)
	if err != nil {
		return err
	}
	for _, r := range found {
		if !which(r) {
			continue
		}
		if err := gone(f.write.change(unix.RTM_DELRULE, 0, raw(r.raw))); err != nil {
			return err
		}
	}
	return nil
}

func ruleParts(family uint8, r kernel.Rule) []nl.NetlinkRequestData {
	parts := []nl.NetlinkRequestData{
		raw{0: family, 7: actionTable, sizeofRuleHeader - 1: 0},
		attr32(nl.FRA_PRIORITY, uint32(r.Priority)),
		attr32(nl.FRA_TABLE, uint32(r.Table)),
		nl.NewRtAttr(nl.FRA_PROTOCOL, []byte{mesh.RouteProtocol}),
	}
	if r.Mark != 0 {
		parts = append(parts, attr32(nl.FRA_FWMARK, r.Mark), attr32(nl.FRA_FWMASK, mesh.MarkMask))
	}
	return parts
}

// rules gives our rules of one family.
func (c *conn) rules(family uint8) ([]foundRule, error) {
	msgs, err := c.dump(unix.RTM_GETRULE, unix.RTM_NEWRULE, raw{0: family, sizeofRuleHeader - 1: 0})
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	var out []foundRule
	for _, m := range msgs {
		r, ours, err := parseRule(m)
		if err != nil {
			return nil, fmt.Errorf("list rules: %w", err)
		}
		if ours {
			out = append(out, r)
		}
	}
	return out, nil
}

// plainAttrs are what a rule of ours consists of; the suppressors are always
// told, as -1 when unset.
var plainAttrs = []uint16{
	nl.FRA_PRIORITY, nl.FRA_TABLE, nl.FRA_PROTOCOL, nl.FRA_FWMARK, nl.FRA_FWMASK,
	nl.FRA_SUPPRESS_PREFIXLEN, nl.FRA_SUPPRESS_IFGROUP,
}

func parseRule(m []byte) (r foundRule, ours bool, err error) {
	if len(m) < sizeofRuleHeader {
		return r, false, errShort
	}
	attrs, err := parseAttrs(m[sizeofRuleHeader:])
	if err != nil {
		return r, false, err
	}
	r.raw = m
	r.Priority = int(uint32Of(attrs[nl.FRA_PRIORITY]))
	r.Table = int(uint32Of(attrs[nl.FRA_TABLE]))
	r.Mark = uint32Of(attrs[nl.FRA_FWMARK])
	const unset = ^uint32(0)
	for kind, value := range attrs {
		if !slices.Contains(plainAttrs, kind) ||
			(kind == nl.FRA_SUPPRESS_PREFIXLEN || kind == nl.FRA_SUPPRESS_IFGROUP) && uint32Of(value) != unset {
			r.odd = true
		}
	}
	if m[1] != 0 || m[2] != 0 || m[3] != 0 || m[7] != actionTable || r.Mark != 0 && uint32Of(attrs[nl.FRA_FWMASK]) != mesh.MarkMask {
		r.odd = true
	}
	proto := attrs[nl.FRA_PROTOCOL]
	return r, ruleFirst <= r.Priority && r.Priority <= ruleLast && len(proto) == 1 && proto[0] == mesh.RouteProtocol, nil
}

// rules gives our rules, each once for all families. One that the families do
// not share, or that others have changed, is told with table 0, so that it
// differs from any wanted rule and still can be deleted.
func (f *FIB) rules(c *conn) ([]kernel.Rule, error) {
	count := map[kernel.Rule]int{}
	priorities := map[int]bool{}
	for _, family := range f.families() {
		found, err := c.rules(family)
		if err != nil {
			return nil, err
		}
		for _, r := range found {
			priorities[r.Priority] = true
			if !r.odd {
				count[r.Rule]++
			}
			if r.odd {
				count[kernel.Rule{Priority: r.Priority}]++
			}
		}
	}
	var out []kernel.Rule
	for priority := range priorities {
		var only kernel.Rule
		kinds := 0
		for r := range count {
			if r.Priority == priority {
				only = r
				kinds++
			}
		}
		if kinds != 1 || count[only] != len(f.families()) {
			only = kernel.Rule{Priority: priority}
		}
		out = append(out, only)
	}
	return out, nil
}
