package store

import (
	"cmp"
	"maps"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
)

// addToken also forgets the tokens that expired long ago, so the state does
// not grow for ever.
func (s *State) addToken(t Token, now time.Time) *Refusal {
	t.Expires, t.Created = t.Expires.UTC().Round(0), now
	t.CAIndex = s.newestCA()
	switch {
	case mesh.CheckName(t.ID) != nil:
		return refuse(CodeInvalid, "the token's id is malformed; make another token: meshctl token create")
	case invite.CheckIdentityKey(t.Key) != nil:
		return refuse(CodeInvalid, "the token's key is unusable; make another token: meshctl token create")
	case t.Uses < 1 || t.Uses > MaxTokenUses:
		return refuse(CodeInvalid, "a token may be used 1 to %d times, not %d; change --uses", MaxTokenUses, t.Uses)
	case !t.Expires.After(now) || t.Expires.After(now.Add(MaxTokenLifetime)):
		return refuse(CodeInvalid, "a token must expire within %d days from now, not at %s; change --ttl", MaxTokenLifetime/(24*time.Hour), t.Expires.Format(time.RFC3339))
	}
	if t.Name != "" {
		if refused := checkNodeName(t.Name); refused != nil {
			return refused
		}
	}
	if refused := cmp.Or(checkTags(t.Tags), checkRoles(t.Roles), checkSite(t.Site)); refused != nil {
		return refused
	}
	if t.AnyPrefix && len(t.Prefixes) > 0 {
		return refuse(CodePrefixRefused, "a token allows any prefix or those that it names, not both; leave --prefix any or the others out")
	}
	if len(t.Prefixes) > MaxPrefixes {
		return refuse(CodePrefixRefused, "a token may allow %d prefixes, not %d; use shorter ones", MaxPrefixes, len(t.Prefixes))
	}
	for _, p := range t.Prefixes {
		if refused := s.checkPrefix(p); refused != nil {
			return refused
		}
	}
	if _, exists := s.Tokens[t.ID]; exists {
		return refuse(CodeInvalid, "a token %s exists already; make another: meshctl token create", t.ID)
	}
	t.Prefixes, t.Tags, t.Roles = sortedPrefixes(t.Prefixes), sortedSet(t.Tags), sortedSet(t.Roles)
	s.putToken(t)
	maps.DeleteFunc(s.Tokens, func(_ string, old Token) bool { return old.Expires.Add(tokenMemory).Before(now) })
	if len(s.Tokens) > MaxTokens {
		return refuse(CodeInvalid, "there are %d tokens; revoke some first: meshctl token list", MaxTokens)
	}
	return nil
}

func (s *State) revokeToken(id string) *Refusal {
	if _, ok := s.Tokens[id]; !ok {
		return refuse(CodeNotFound, "there is no token %q; see meshctl token list", id)
	}
	s.Tokens = maps.Clone(s.Tokens)
	delete(s.Tokens, id)
	return nil
}
