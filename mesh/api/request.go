package api

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"guywire/mesh"
)

// A checker is a request that can say what is wrong with it. The error becomes
// the sentence of a CodeInvalid.
type checker interface{ check() error }

// decode reads a request of type Q: a POST from its body, everything else from
// path and query. Unknown fields, doubled parameters and trailing data are errors.
func decode[Q any](r *http.Request) (Q, error) {
	var q Q
	var err error
	if r.Method == http.MethodPost {
		err = decodeBody(r.Body, &q)
	} else {
		err = decodeQuery(r, reflect.ValueOf(&q).Elem())
	}
	if err == nil {
		if c, ok := any(q).(checker); ok {
			err = c.check()
		}
	}
	if err != nil {
		return q, notValid(err)
	}
	return q, nil
}

func notValid(why error) *Error {
	return Errorf(CodeInvalid, "see meshctl --help, or /v1/openapi.json for programs", "The request is not valid: %v", why)
}

// decodeBody reads one JSON object, or nothing at all, into q.
func decodeBody(body io.Reader, q any) error {
	b, err := io.ReadAll(body)
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return fmt.Errorf("the body is larger than %d bytes", maxBody)
	}
	if err != nil {
		return err
	}
	if len(b) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(q); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the body's object")
	}
	return nil
}

// decodeQuery fills the fields of a flat struct from parameters of the same
// names as in JSON.
func decodeQuery(r *http.Request, q reflect.Value) error {
	params, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	for i := range q.NumField() {
		name := q.Type().Field(i).Tag.Get("json")
		value := r.PathValue(name)
		if value == "" {
			if len(params[name]) > 1 {
				return fmt.Errorf("parameter %q appears twice", name)
			}
			value = params.Get(name)
			delete(params, name)
		}
		if value == "" {
			continue
		}
		if err := setParameter(q.Field(i), value); err != nil {
			return fmt.Errorf("parameter %q: %w", name, err)
		}
	}
	for name := range params {
		return fmt.Errorf("there is no parameter %q here", name)
	}
	return nil
}

func setParameter(v reflect.Value, s string) error {
	if len(s) > maxText {
		return fmt.Errorf("longer than %d bytes", maxText)
	}
	var err error
	switch v.Kind() {
	case reflect.String:
		v.SetString(s)
	case reflect.Bool:
		var b bool
		b, err = strconv.ParseBool(s)
		v.SetBool(b)
	case reflect.Int:
		var n int64
		n, err = strconv.ParseInt(s, 10, 64)
		v.SetInt(n)
	case reflect.Uint64:
		var n uint64
		n, err = strconv.ParseUint(s, 10, 64)
		v.SetUint(n)
	case reflect.Float64:
		var f float64
		f, err = strconv.ParseFloat(s, 64)
		v.SetFloat(f)
	default:
		panic("query field of kind " + v.Kind().String())
	}
	if err != nil {
		return fmt.Errorf("%q is not a %s", s, v.Kind())
	}
	return nil
}

// parameters is the inverse of decodeQuery, for the client. Zero values are left out.
func parameters(q any) url.Values {
	v := reflect.ValueOf(q)
	params := url.Values{}
	for i := range v.NumField() {
		if !v.Field(i).IsZero() {
			params.Set(v.Type().Field(i).Tag.Get("json"), fmt.Sprint(v.Field(i).Interface()))
		}
	}
	return params
}

func (q PathQuery) check() error {
	if q.To == "" {
		return errors.New("\"to\" is missing")
	}
	return nil
}

func (q PingQuery) check() error {
	switch {
	case q.Node == "":
		return errors.New("\"node\" is missing")
	case q.Count < 0 || q.Count > MaxPings:
		return fmt.Errorf("count %d is not from 0 to %d", q.Count, MaxPings)
	}
	if err := checkMillis("interval_ms", q.IntervalMs, MinPingMs, MaxPingMs); err != nil {
		return err
	}
	return checkMillis("timeout_ms", q.TimeoutMs, MinPingMs, MaxPingMs)
}

// checkMillis accepts 0, which stands for the default.
func checkMillis(what string, v, low, high float64) error {
	if v != 0 && (math.IsNaN(v) || v < low || v > high) {
		return fmt.Errorf("%s %g is not from %g to %g", what, v, low, high)
	}
	return nil
}

func (r InitRequest) check() error {
	for _, name := range []string{r.Mesh, r.Name, r.Site} {
		if err := checkOptionalName(name); err != nil {
			return err
		}
	}
	for _, pool := range []struct {
		p    *netip.Prefix
		what string
		four bool
		most int // longest length that leaves room for a mesh
	}{{r.Pool4, "pool4", true, 28}, {r.Pool6, "pool6", false, 112}} {
		if pool.p == nil {
			continue
		}
		if err := checkPrefix(*pool.p); err != nil {
			return fmt.Errorf("%s: %w", pool.what, err)
		}
		if pool.p.Addr().Is4() != pool.four {
			return fmt.Errorf("%s %s is of the other family", pool.what, pool.p)
		}
		if pool.p.Bits() > pool.most {
			return fmt.Errorf("%s %s is too small: its length may be %d at most", pool.what, pool.p, pool.most)
		}
		for _, p := range r.Prefixes {
			if p.Overlaps(*pool.p) {
				return fmt.Errorf("prefix %s overlaps %s %s: choose another pool", p, pool.what, pool.p)
			}
		}
	}
	return checkPrefixes(r.Prefixes)
}

func (r JoinRequest) check() error {
	if r.Token == "" {
		return errors.New("the token is missing")
	}
	if err := checkOptionalName(r.Name); err != nil {
		return err
	}
	return checkPrefixes(r.Prefixes)
}

func (r TokenRequest) check() error {
	if err := checkOptionalName(r.Name); err != nil {
		return err
	}
	if r.Uses < 0 || r.Uses > MaxTokenUses {
		return fmt.Errorf("uses %d is not from 1 to %d", r.Uses, MaxTokenUses)
	}
	if r.Name != "" && r.Uses > 1 {
		return fmt.Errorf("a token for the name %q can be used once only", r.Name)
	}
	if err := checkMillis("ttl_ms", r.TTLMs, 1000, Millis(MaxTokenTTL)); err != nil {
		return err
	}
	if len(r.Tags) > maxList {
		return fmt.Errorf("%d tags are more than %d", len(r.Tags), maxList)
	}
	for _, tag := range r.Tags {
		if err := mesh.CheckName(tag); err != nil {
			return err
		}
	}
	if err := cmp.Or(checkOptionalName(r.Site), checkRoles(r.Roles)); err != nil {
		return err
	}
	if r.AnyPrefix && len(r.Prefixes) > 0 {
		return errors.New("a token allows any network or those that it names, not both")
	}
	return checkPrefixes(r.Prefixes)
}

func checkRoles(roles []string) error {
	for i, role := range roles {
		if role != RoleOperator && role != RoleNoVote {
			return fmt.Errorf("role %.40q is not %s or %s", role, RoleOperator, RoleNoVote)
		}
		if slices.Contains(roles[:i], role) {
			return fmt.Errorf("the role %s is named twice", role)
		}
	}
	return nil
}

func (q TokenQuery) check() error {
	if q.ID == "" {
		return errors.New("the id of the token is missing")
	}
	return nil
}

func (r TopologyRequest) check() error {
	if r.Mode != TopologyAuto && r.Mode != TopologyFull && r.Mode != TopologyHub {
		return fmt.Errorf("mode %.40q is not auto, full or hub", r.Mode)
	}
	if (r.Mode == TopologyHub) != (r.Hub != "") {
		return errors.New("mode hub, and no other, needs the tag of its hubs")
	}
	if r.Dense && r.Mode != TopologyAuto {
		return errors.New("only mode auto can be dense")
	}
	return checkOptionalName(r.Hub)
}

func (r PairsRequest) check() error {
	pairs := 0
	for _, list := range []List[Pair]{r.Pin, r.Unpin, r.Forbid, r.Allow} {
		pairs += len(list)
		for _, p := range list {
			for _, node := range []string{p.A, p.B} {
				if err := mesh.CheckName(node); err != nil { // an id is one, too
					return err
				}
			}
			if p.A == p.B {
				return fmt.Errorf("a pair is two different nodes, and %s is named twice", p.A)
			}
		}
	}
	if pairs == 0 || pairs > maxList {
		return fmt.Errorf("%d pairs are not from 1 to %d", pairs, maxList)
	}
	return nil
}

func (r NodeRequest) check() error {
	if r.Node == "" {
		return errors.New("\"node\" is missing")
	}
	if r.Site != nil {
		if err := checkOptionalName(*r.Site); err != nil {
			return err
		}
	}
	if r.Roles != nil {
		if err := checkRoles(*r.Roles); err != nil {
			return err
		}
	}
	if r.Tags == nil {
		return mesh.CheckName(r.Node)
	}
	if len(*r.Tags) > maxList {
		return fmt.Errorf("%d tags are more than %d", len(*r.Tags), maxList)
	}
	for _, name := range append([]string{r.Node}, *r.Tags...) {
		if err := mesh.CheckName(name); err != nil {
			return err
		}
	}
	return nil
}

func (r DrainRequest) check() error {
	if err := checkTarget(r.Target); err != nil {
		return err
	}
	return checkMillis("wait_ms", r.WaitMs, 0, MaxDrainMs)
}

func (q UndrainQuery) check() error { return checkTarget(q.Target) }

// checkTarget accepts [NODE/]UPLINK, NODE, and two ends with a colon between.
func checkTarget(s string) error {
	if s == "" {
		return errors.New("\"target\" is missing")
	}
	ends := strings.Split(s, ":")
	if len(ends) > 2 {
		return fmt.Errorf("target %.80q is not NODE, UPLINK, NODE/UPLINK or UPLINK:NODE/UPLINK", s)
	}
	for _, end := range ends {
		names := strings.Split(end, "/")
		if len(names) > 2 {
			return fmt.Errorf("target %.80q is not NODE, UPLINK, NODE/UPLINK or UPLINK:NODE/UPLINK", s)
		}
		for _, name := range names {
			if err := mesh.CheckName(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r RecoverRequest) check() error {
	if len(r.Plan) > maxText {
		return fmt.Errorf("the id of the plan is longer than %d bytes", maxText)
	}
	return nil
}

func (q NodeQuery) check() error {
	if q.Node == "" {
		return errors.New("\"node\" is missing")
	}
	return mesh.CheckName(q.Node)
}

func (r GrantRequest) check() error {
	for _, p := range r.Shared {
		if !slices.Contains(r.Prefixes, p) {
			return fmt.Errorf("the shared prefix %s is not one of the prefixes", p)
		}
	}
	return cmp.Or(NodeQuery{r.Node}.check(), checkPrefixes(r.Prefixes), checkPrefixes(r.Shared))
}

func (r ReserveRequest) check() error {
	if !r.Addr.IsValid() || r.Addr.Zone() != "" {
		return errors.New("\"addr\" is not an address of a node")
	}
	return NameQuery{r.Name}.check()
}

func (q NameQuery) check() error {
	if q.Name == "" {
		return errors.New("the name is missing")
	}
	return mesh.CheckName(q.Name)
}

func (r OperatorRequest) check() error {
	if r.Right != RightRead && r.Right != RightChange {
		return fmt.Errorf("right %.40q is not %s or %s", r.Right, RightRead, RightChange)
	}
	if r.Key.IsZero() {
		return errors.New("the key is missing")
	}
	return cmp.Or(NameQuery{r.Name}.check(), checkMillis("ttl_ms", r.TTLMs, 1000, Millis(MaxOperatorTTL)))
}

func (r SettingsRequest) check() error {
	if r.Voters == nil && r.CacheMaxAgeMs == nil {
		return errors.New("there is nothing to set")
	}
	if r.Voters != nil && !slices.Contains([]int{0, 1, 3, 5}, *r.Voters) {
		return fmt.Errorf("%d voters are not 0, 1, 3 or 5", *r.Voters)
	}
	if r.CacheMaxAgeMs != nil { // the log knows which ages are good, once it is one
		return checkMillis("cache_max_age_ms", *r.CacheMaxAgeMs, 1, Millis(math.MaxInt64-time.Second))
	}
	return nil
}

func checkOptionalName(s string) error {
	if s == "" {
		return nil
	}
	return mesh.CheckName(s)
}

func checkPrefixes(list []netip.Prefix) error {
	if len(list) > maxList {
		return fmt.Errorf("%d prefixes are more than %d", len(list), maxList)
	}
	for i, p := range list {
		if err := checkPrefix(p); err != nil {
			return err
		}
		for _, q := range list[:i] {
			if p.Overlaps(q) {
				return fmt.Errorf("prefix %s overlaps %s", p, q)
			}
		}
	}
	return nil
}

func checkPrefix(p netip.Prefix) error {
	a := p.Addr()
	switch {
	case !p.IsValid():
		return errors.New("a prefix is empty")
	case a.Is4In6():
		return fmt.Errorf("prefix %s is IPv4 in IPv6 form", p)
	case p != p.Masked():
		return fmt.Errorf("prefix %s has bits beyond its length: did you mean %s?", p, p.Masked())
	case p.Bits() == 0:
		return fmt.Errorf("prefix %s is the default route, which a site cannot announce", p)
	case a.IsLoopback(), a.IsMulticast(), a.IsLinkLocalUnicast(), a.IsUnspecified():
		return fmt.Errorf("prefix %s cannot be routed between sites", p)
	}
	return nil
}
